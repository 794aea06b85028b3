# The runs of the tests of reports: sourced after lib.sh.
make_runs() {
    local more=(--training.steps 40 --parallelism.expert_parallel_degree 2 --validation.enable --validation.freq 10 --validation.steps 2
        --validation.dataset tokens --validation.dataset_path tokens.bin)
    train 2 one "${more[@]}"
    expect_rc 0 "a run"
    train 2 restarted "${more[@]}" --training.steps 10
    expect_rc 0 "the first part of a run"
    train 2 restarted "${more[@]}"
    expect_rc 0 "the second part of a run"
    local lr
    for lr in 1e-3 3e-3 1e-2; do
        train 1 "lr-$lr" --training.steps 30 --optimizer.lr $lr --checkpoint.no_enable
        expect_rc 0 "a run with lr $lr"
    done
}

# make_long FOLDER STEPS: a run as long as real ones are, which nobody trained.
make_long() {
    mkdir -p "$1" && awk -v n="$2" 'BEGIN {
        srand(7)
        for (s = 1; s <= n; s++) {
            noise = rand() - 0.5
            printf "{\"step\": %d, \"loss\": %.6f, \"grad_norm\": %.5f, \"lr\": %.6g, \"memory_gib\": 112.5, \"tps\": %.1f, \"tflops\": 431.2, \"mfu\": %.3f, \"tokens_seen\": %.0f, \"time_s\": %.5f, \"data_time_s\": 0.001, \"forward_backward_s\": 0.82, \"optimizer_s\": 0.03, \"checkpoint_s\": %s, \"validation_s\": %s", \
                s, 1.9 + 9 / (1 + s ^ 0.35) + 0.1 * noise + (rand() < 2e-4) * 3, 0.3 + 2 / (1 + s * 0.01) + 0.1 * noise, 3e-4 * (1 - s / n), 38000 + 500 * noise, 43 + noise, s * 4194304, 0.86 + (s % 1000 == 0) * 3, s % 1000 == 0 ? 3 : 0, s % 500 == 0 ? 8 : 0
            if (s % 500 == 0) printf ", \"validation_loss\": %.5f", 2 + 9 / (1 + s ^ 0.35)
            printf ", \"moe_load_max_over_mean\": ["
            for (l = 0; l < 8; l++) printf "%s%.4f", l ? ", " : "", 1.1 + 4 / (1 + s * 0.002 * (1 + l)) + 0.1 * noise
            printf "], \"moe_load_busiest_rank_share\": ["
            for (l = 0; l < 8; l++) printf "%s%.4f", l ? ", " : "", 0.125 + 0.1 / (1 + s * 0.002)
            printf "], \"ep_bytes\": 3100000000, \"ep_overflow_rows\": 0, \"ep_wait_s\": 0.0123%s}\n", (s == 1) ? ", \"resumed_step\": 0" : (s % 40000 == 1) ? sprintf(", \"resumed_step\": %d", s - 1) : ""
        }
    }' > "$1/metrics.jsonl"
}
