#!/usr/bin/env bash
# expar tune: never slower than the defaults, picked up where it fits and nowhere else, the same bits whatever it chose.
. "$(dirname "$0")/lib.sh"
command -v python3 > /dev/null || { echo "skipped: no python3 to read JSON with"; exit 77; }
read_json() { # FILE EXPRESSION: python's verdict on `d`
    python3 -c "import json, sys; d = json.load(open('$1')); sys.exit(0 if ($2) else 1)" || fail "$1: not ($2)"
}
sed -i 's/^flavor = "custom"/&\nname = "qwen3"/' tiny.toml
cat >> tiny.toml <<'TOML'
[parallelism]
expert_parallel_comm_backend = "deepep"
TOML
tune() { # RANKS OPTIONS: output in tune.log and tune.json, exit code in $rc
    local ranks=$1
    shift
    NGPU=$ranks timeout 100 "$EXPAR" tune tiny.toml --parallelism.expert_parallel_degree "$ranks" --seconds 0.6 "$@" \
        > tune.json 2> tune.log
    rc=$?
    cat tune.json >> tune.log
}
ep() { # RANKS DUMP OPTIONS
    train "$1" "$2" --parallelism.expert_parallel_degree "$1" --training.steps 6 --checkpoint.interval 6 "${@:3}"
}
hold() { # what the tuned file says besides tuned_for
    { sed '/^transport\|^num_sms/d' measured.toml; printf '%s\n' "$@"; } > tiny.tuned.toml
}

# ---- measured; the defaults stay unless something was faster when measured again
for ranks in 2 4 1; do
    tune $ranks --json
    expect_rc 0 "tune with $ranks ranks"
    read_json tune.json "d['winner'] is None or d['pair']['ratio'] <= 0.99 and d['pair']['high'] < 1"
    read_json tune.json "d['file'] == (None if $ranks == 1 else 'tiny.tuned.toml') and '; EP $ranks; ' in d['tuned_for']"
    read_json tune.json "all(c['same_out_and_dx'] == (c['same_bits'] if c['verdict'] != 'not measured' else None) for c in d['candidates'])"
    read_json tune.json "all(c['same_out_and_dx'] for c in d['candidates'] if c['name'].startswith('deepep') and c['pair']['pairs'])"
    [ $ranks -gt 1 ] || read_json tune.json "d['candidates'] == [] and d['winner'] is None"
    [ $ranks -eq 1 ] || read_json tune.json "d['candidates'][0]['name'] == 'deepep.transport a2a' and d['seconds'] < 60"
    grep -q '^tuned_for = ' tiny.tuned.toml || fail "no tuned_for"
done
expect_text tiny.tuned.toml "; EP 4; " # with one rank there is nothing to choose: the file stays
tune 2
expect_rc 0 "tune as text"
expect_text tune.log "^deepep.transport a2a .* against the default\|^deepep.transport a2a .*+-"
expect_text tune.log "^kept: the defaults\|^won: deepep.transport a2a"
expect_text tune.log "wrote tiny.tuned.toml"
cp tiny.tuned.toml measured.toml

# ---- the run takes it, and has the same bits as without
hold 'transport = "a2a"'
ep 2 tuned
expect_rc 0 "a tuned run"
expect_text tuned.log "tuned: tiny.tuned.toml fits this machine and model: deepep.transport a2a"
expect_text tuned/config.toml '^transport = "a2a"'
ep 2 plain --deepep.tuned_file none
expect_rc 0 "the run without"
expect_no plain.log "tuned"
expect_text plain/config.toml '^transport = "auto"'
for step in 1 2 3 4 5 6; do
    for key in loss grad_norm; do
        value=$(metric tuned $step $key)
        [ -n "$value" ] && [ "$value" = "$(metric plain $step $key)" ] || fail "step $step: $key differs"
    done
done
n=0
for file in plain/checkpoint/step-6/*; do
    [ "$(basename "$file")" = manifest.json ] || { cmp "$file" "tuned/checkpoint/step-6/$(basename "$file")" || fail "$file differs"; n=$((n + 1)); }
done
[ $n -gt 0 ] || fail "no checkpoint was compared"
hold 'num_sms = 24'
ep 2 sms
expect_text sms.log "deepep.transport auto, deepep.num_sms 24"
expect_text sms/config.toml '^num_sms = 24'
hold
ep 2 kept
expect_text kept.log "tuned: tiny.tuned.toml fits this machine and model: the defaults are the fastest"
cmp plain/config.toml <(sed 's/kept/plain/; s/^# tuned_file.*/tuned_file = "none"/' kept/config.toml) || fail "kept defaults change the configuration"

# ---- the user's own settings win
hold 'transport = "a2a"'
ep 2 own --deepep.transport p2p
expect_text own/config.toml '^transport = "p2p"'
expect_text own.log "is set already"
printf '[deepep]\ntransport = "p2p"\n' >> tiny.toml
ep 2 own_file
expect_text own_file/config.toml '^transport = "p2p"'
tune 2
expect_text tune.log "^note: deepep.transport p2p is set by hand: .expar train. keeps that; leave it out to use"
tune 2 --deepep.num_sms 8
expect_text tune.log "^note: deepep.transport p2p and deepep.num_sms 8 are set by hand"
tune 2 --deepep.transport a2a
if grep -q "^won: deepep.transport a2a" tune.log; then
    expect_no tune.log "^note:"
else
    expect_text tune.log "^note: deepep.transport a2a is set by hand: .*leave it out to use the defaults"
fi
tune 1 # nothing is measured, so nothing is overruled
expect_no tune.log "^note:"
sed -i '/^\[deepep\]/,$d' tiny.toml
hold 'transport = "a2a"'

# ---- another machine or model: one line, and the defaults
ep 4 elsewhere
expect_rc 0 "a run that was not tuned for"
expect_text elsewhere.log 'tiny.tuned.toml was measured for "2 ranks (threads)", this run has "4 ranks (threads)": the defaults are used'
[ "$(grep -c tuned elsewhere.log)" -eq 1 ] || fail "more than one line about it"
expect_text elsewhere/config.toml '^transport = "auto"'
ep 2 rows --training.local_batch_size 4
expect_text rows.log 'measured for "64 tokens", this run has "128 tokens"'
sed -i 's/tuned_for = "[^;]*/tuned_for = "GPU of next year/' tiny.tuned.toml
ep 2 hardware
expect_text hardware.log 'was measured for "GPU of next year", this run has'
train 2 one --training.steps 2
expect_no one.log "tuned" # no row is dispatched

# ---- a saved configuration carries its values and what they were measured for
for ranks in 2 4; do
    NGPU=$ranks "$EXPAR" train tuned/config.toml --parallelism.expert_parallel_degree $ranks --job.dump_folder "saved$ranks" \
        --training.steps 2 > saved$ranks.log 2>&1 || fail "a saved configuration with $ranks ranks"
done
expect_text saved2.log "tuned: \[deepep\] of tuned/config.toml"
expect_text saved2/config.toml '^transport = "a2a"'
expect_text saved4.log 'deepep.tuned_for (tuned/config.toml:[0-9]*): measured for "2 ranks'
expect_text saved4/config.toml '^transport = "auto"'

# ---- damage: found beside the configuration a warning, named by the user an error
damage() { # TEXT PATTERN
    printf '%b' "$1" > tiny.tuned.toml
    rm -rf damaged
    ep 2 damaged
    expect_rc 0 "damage: $1"
    expect_text damaged.log "$2.*the defaults are used"
    expect_text damaged/config.toml '^transport = "auto"'
    cp tiny.tuned.toml named.toml
    ep 2 named --deepep.tuned_file named.toml
    expect_rc 2 "a damaged file that was named: $1"
    [ "$(wc -l < named.log)" -eq 1 ] || fail "more than one line"
}
damage '[deepep\n' 'tiny.tuned.toml:1:'
damage '' 'there is no deepep.tuned_for in it'
damage '[deepep]\ntransport = "a2a"\n' 'there is no deepep.tuned_for in it'
damage '[deepep]\ntuned_for = "x"\ntransport = "pigeon"\n' 'tiny.tuned.toml:3:13: deepep.transport must be one of auto|p2p|a2a'
damage '[deepep]\ntuned_for = "x"\ntransport = "hierarchical"\n' 'deepep.transport must be one of'
damage '[deepep]\ntuned_for = "x"\nnum_sms = -4\n' 'deepep.num_sms must be'
damage '[deepep]\ntuned_for = "x"\noverlap_split = 0.3\n' 'not deepep.overlap_split'
damage '[deepep]\ntuned_for = "x"\n[training]\nsteps = 1\n' 'tiny.tuned.toml:3:'
damage '[deepep]\ntuned_for = 7\n' 'tiny.tuned.toml:2:'
ep 2 absent --deepep.tuned_file nowhere.toml
expect_rc 2 "a named file that is not there"
expect_text absent.log "deepep.tuned_file: .*nowhere.toml"
rm tiny.tuned.toml

# ---- elsewhere on the disk
mkdir -p other
tune 2 --out other/h.toml
expect_rc 0 "--out"
expect_text tune.log "use it with --deepep.tuned_file other/h.toml"
[ ! -e tiny.tuned.toml ] || fail "--out writes beside the configuration, too"
ep 2 out --deepep.tuned_file other/h.toml
expect_text out.log "tuned: other/h.toml fits"
tune 2 --out nowhere/h.toml
expect_rc 1 "a folder that is not there"
expect_text tune.log "cannot be written"
# Another file than a tuned one is not written over, and is told before a minute of measuring.
cp tiny.toml before.toml
for file in tiny.toml other; do
    tune 2 --out $file
    expect_rc 2 "--out $file"
    [ "$(grep -c '^error: ' tune.log)" = 1 ] && [ "$(wc -l < tune.log)" = 1 ] || fail "--out $file: not one error: $(cat tune.log)"
    cmp tiny.toml before.toml || fail "--out writes over the configuration"
done
tune 2 --deepep.tuned_file tiny.toml
expect_rc 2 "deepep.tuned_file that is the configuration"
cmp tiny.toml before.toml || fail "the configuration is written over"
tune 2 --out other/h.toml
expect_rc 0 "a tuned file is written again"
NGPU=2 "$EXPAR" tune absent.toml > tune.log 2>&1
rc=$?
expect_rc 2 "a configuration that is not there"
NGPU=2 "$EXPAR" tune --parallelism.expert_parallel_degree 2 > tune.log 2>&1
rc=$?
expect_rc 2 "neither a file nor --out"
tune 2 --model.flavor 0.6B --moe.num_experts 0 --moe.top_k 0
expect_rc 2 "a model without experts"
expect_text tune.log "has no experts"
NGPU=1 "$EXPAR" tune tiny.toml --parallelism.expert_parallel_degree 2 > tune.log 2>&1
rc=$?
expect_rc 2 "too few ranks"

# ---- ranks that are processes
if [ -n "${MPIRUN:-}" ] && command -v mpirun > /dev/null; then
    tune 2 --job.ranks processes
    expect_rc 0 "tune with processes"
    expect_text tiny.tuned.toml "2 ranks (processes)"
    ep 2 process --job.ranks processes
    expect_rc 0 "a tuned run of processes"
    expect_text process.log "tuned: tiny.tuned.toml fits"
    ep 2 thread
    expect_text thread.log 'was measured for "2 ranks (processes)", this run has "2 ranks (threads)"'
    printf '[deepep\n' > named.toml
    ep 2 broken --job.ranks processes --deepep.tuned_file named.toml
    [ "$rc" -ne 0 ] || fail "processes accept a damaged file"
    expect_text broken.log "named.toml:1"
fi
echo "ok"
