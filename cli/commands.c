#include "commands.h"

#include <stddef.h>
#include "cli.h"

static const cli_command commands[] = {
    {"train", cmd_train, "train a model: one TOML file, any number of ranks"},
    {"config", cmd_config, "show the merged configuration, and where each value comes from"},
    {"plan", cmd_plan, "memory and speed of a run on GPUs that need not be here"},
    {"tune", cmd_tune, "measure the settings of dispatch and combine, for `train` to use"},
    {"generate", cmd_generate, "continue a text with a trained model"},
    {"eval", cmd_eval, "loss and perplexity of a model over tokens or text"},
    {"tokenize", cmd_tokenize, "text to token ids and back"},
    {"tokenizer-train", cmd_tokenizer_train, "train a byte-level BPE tokenizer on text"},
    {"doctor", cmd_doctor, "what was built in, what this machine has, what works"},
    {"bench", cmd_bench,
     "measure steps, ops, expert exchange and scaling beside the machine's limits"},
    {"report", cmd_report, "curves of runs: an HTML file, a page that follows a run, the terminal"},
    {"trace", cmd_trace, "where the time of traced steps went, and how much of it the work needs"},
    {"checkpoint", cmd_checkpoint, "list, show and verify the checkpoints of a run"},
    {"export", cmd_export, "write a checkpoint as a Hugging Face folder"},
};

const cli_command *cli_command_at(int i) {
    return i >= 0 && (size_t)i < sizeof commands / sizeof commands[0] ? &commands[i] : NULL;
}
