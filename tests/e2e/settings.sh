#!/usr/bin/env bash
# Settings as people give them: the configuration file in every form, all mistakes of a file at once, paths beside
# the file, and nothing that was meant and has no effect without a word.
. "$(dirname "$0")/lib.sh"

run() { # output in out.log, exit code in $rc
    timeout 60 "$EXPAR" "$@" > out.log 2>&1
    rc=$?
}
short="--job.threads_per_rank 1 --training.steps 1 --checkpoint.no_enable"

# ---- the file, four ways, and the same for every command that takes one
i=0
for form in "tiny.toml" "--config tiny.toml" "--config=tiny.toml" "--job.config_file tiny.toml"; do
    i=$((i + 1))
    # shellcheck disable=SC2086
    run train $form --job.dump_folder "f$i" $short
    expect_rc 0 "train $form"
    cmp -s f1/config.toml <(sed "s/f$i/f1/" "f$i/config.toml") || fail "train $form: another configuration"
    for command in config plan; do
        # shellcheck disable=SC2086
        run $command $form --training.seq_len 16
        expect_rc 0 "$command $form"
        sed 's/f[0-9]//' out.log > "$command.$i"
        cmp -s "$command.1" "$command.$i" || fail "$command $form: another answer"
    done
done
run train tiny.toml --config other.toml
expect_rc 2 "two files"
expect_text out.log "two configuration files"
run train --training.steps 1 tiny.toml
expect_rc 2 "the file behind an option"
expect_text out.log "the configuration file comes first"

# ---- all mistakes of a file at once
printf '[training]\nsetps = 4\nseq_len = "x"\n[optimiser]\nlr = 1.0\n[checkpoint]\nintervall = 3\n' > bad.toml
run train bad.toml
expect_rc 2 "a file with four mistakes"
for part in "4 mistakes" "bad.toml:2:1: unknown key training.setps; did you mean training.steps" \
    "bad.toml:3:11: training.seq_len must be a whole number" "bad.toml:4:2: unknown section" \
    "bad.toml:7:1: unknown key checkpoint.intervall; did you mean checkpoint.interval"; do
    expect_text out.log "$part"
done
[ "$(wc -l < out.log)" -eq 1 ] || fail "more than one line"

# ---- relative paths: here first, then beside the file; errors name the key
mkdir -p project/data
mv tokens.bin project/data/
sed 's|tokens.bin|data/tokens.bin|' tiny.toml > project/run.toml
# shellcheck disable=SC2086
run train project/run.toml --job.dump_folder g $short
expect_rc 0 "data beside the configuration file"
expect_text g/config.toml 'project/data/tokens.bin'
sed -i 's|data/tokens.bin|data/*.bin|' project/run.toml
# shellcheck disable=SC2086
run train project/run.toml --job.dump_folder h $short
expect_rc 0 "a glob beside the configuration file"
# shellcheck disable=SC2086
run train tiny.toml --job.dump_folder k $short
[ "$rc" -ne 0 ] || fail "training without data"
expect_text out.log "training.dataset_path"
cp project/data/tokens.bin .

# ---- what is not there is told what is
run train tiny.toml --model.flavor llama3
expect_rc 2 "an unknown flavor"
expect_text out.log "there is no 'llama3'; Flavors (Qwen3 and Qwen3-MoE): tiny_moe"
expect_no out.log "did you mean"
run train tiny.toml --model.flavor 30B-A3
expect_text out.log "did you mean '30B-A3B'"
# shellcheck disable=SC2086
run train tiny.toml --job.dump_folder m $short --parallelism.expert_parallel_degree 2
expect_rc 2 "two ranks' experts on one rank"
expect_text out.log "NGPU=2"

# ---- settings without effect
# shellcheck disable=SC2086
run train tiny.toml --job.dump_folder n $short --checkpoint.interval 3
expect_rc 0 "an interval without checkpoints"
expect_text out.log "checkpoint.interval (command line) has no effect: checkpoint.enable is off"
# shellcheck disable=SC2086
run train tiny.toml --job.dump_folder n2 $short --training.backend cpu --training.cuda_graph
expect_rc 0 "CUDA graphs on a CPU"
expect_text out.log "training.cuda_graph has no effect: cpu has no CUDA graphs"
run config tiny.toml --profiling.profile_freq 3
expect_text out.log "profiling.profile_freq (command line) has no effect"
# shellcheck disable=SC2086
run train tiny.toml --job.dump_folder o $short
expect_no out.log "no effect"
expect_text out.log "weights: random"

# ---- weights from where the model comes from
"$EXPAR" train --config tiny.toml --job.dump_folder p --job.threads_per_rank 1 --training.steps 2 \
    --checkpoint.last_save_in_hf > p.log 2>&1 || fail "no export"
sed '/^\[model\]/,/^\[training\]/{/^\[training\]/!d}' tiny.toml > hf.toml
printf '[model]\nflavor = "hf"\nhf_assets_path = "p/hf-step-2"\n' >> hf.toml
for form in "--checkpoint.initial_load_in_hf" \
    "--checkpoint.initial_load_in_hf --checkpoint.initial_load_path p/hf-step-2"; do
    # shellcheck disable=SC2086
    run train hf.toml --job.dump_folder q $short $form
    expect_rc 0 "$form"
    expect_text out.log "weights: p/hf-step-2 (Hugging Face)"
    metric q 1 loss > "loss.$(wc -w <<< "$form")"
    rm -rf q
done
cmp -s loss.1 loss.3 || fail "the two ways load different weights"
# shellcheck disable=SC2086
run train hf.toml --job.dump_folder r $short
expect_rc 0 "sizes from a folder, weights drawn"
expect_text out.log "takes only the sizes from p/hf-step-2, not its weights"
sed -i '/hf_assets_path/d; s/flavor = "hf"/flavor = "tiny_moe"/' hf.toml
# shellcheck disable=SC2086
run train hf.toml --job.dump_folder s $short --checkpoint.initial_load_in_hf
expect_rc 2 "nothing to load from"
expect_text out.log "set checkpoint.initial_load_path, or model.hf_assets_path"

echo "settings: all as they should be"
