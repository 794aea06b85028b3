/** What `expar tune` has measured: a TOML file with a [deepep] and perhaps a [gemm] section, and how a configuration
 * takes its values. */
#ifndef XP_CONFIG_TUNED_H
#define XP_CONFIG_TUNED_H

#include <stddef.h>
#include "config/config.h"

#define XP_TUNED_FOR_MAX   512
#define XP_TUNED_GEMMS_MAX 6144 /* bytes of all algorithms as one text */

/** Plain data, so that one rank can read it for all. */
typedef struct xp_tuned {
    char path[1024];
    char tuned_for[XP_TUNED_FOR_MAX];
    char transport[16]; /* "": as by default */
    int64_t num_sms;    /* 0: as by default */
    int transport_line, num_sms_line;
    char gemm_for[XP_TUNED_FOR_MAX]; /* "": there is no [gemm] */
    char gemms[XP_TUNED_GEMMS_MAX];  /* gemm.algorithms with commas between them */
    int gemm_line;
} xp_tuned;

/**
 * Where the tuned values of this configuration lie: deepep.tuned_file, else NAME.tuned.toml beside the
 * configuration NAME.toml.
 * @param[out] path   "" when there is none to look for: deepep.tuned_file = "none", or no configuration file
 * @param[out] named  the user named the file, so it must be there
 * @return XP_OK; XP_ECONFIG: the path is too long
 */
XP_NODISCARD xp_status xp_config_tuned_path(const xp_config_set *set, char *path, size_t n_path,
                                            bool *named);
/**
 * Read a tuned file: deepep.tuned_for, deepep.transport (auto, p2p, a2a) and deepep.num_sms, gemm.tuned_for and
 * gemm.algorithms, nothing else.
 * @return XP_OK; XP_ENOENT; XP_EIO; XP_ECONFIG: it is damaged, "path:line:column: what"
 */
XP_NODISCARD xp_status xp_tuned_read(const char *path, xp_tuned *tuned);
/**
 * Set the fields that the user has left open: not on the command line or in the environment, and in the
 * configuration file absent or "auto".
 * @param[out] n_taken  fields that were set, tuned_for apart
 */
XP_NODISCARD xp_status xp_config_take_tuned(xp_config_set *set, const xp_tuned *tuned,
                                            int *n_taken);
/** The same for gemm.algorithms, with gemm.tuned_for. @param[out] taken  false: the user has set them */
XP_NODISCARD xp_status xp_config_take_tuned_gemms(xp_config_set *set, const xp_tuned *tuned,
                                                  bool *taken);
/** gemm.tuned_for and its place when the configuration file itself has it, else NULL; and back to the defaults. */
const char *xp_config_own_gemm_tuned_for(const xp_config_set *set, char *where, size_t n_where);
XP_NODISCARD xp_status xp_config_drop_tuned_gemms(xp_config_set *set);
/** deepep.tuned_for and its place ("run.toml:7") when the configuration file itself has it, else NULL. */
const char *xp_config_own_tuned_for(const xp_config_set *set, char *where, size_t n_where);
/** The values beside the configuration file's own deepep.tuned_for go back to their defaults, and tuned_for
 * itself; what the command line has set stays. */
XP_NODISCARD xp_status xp_config_drop_tuned(xp_config_set *set);

/** One line about the tuned values for the start of a run; NULL: nothing to say. `text` is copied. */
XP_NODISCARD xp_status xp_config_set_tuned_note(xp_config_set *set, const char *text, bool warns);
const char *xp_config_tuned_note(const xp_config_set *set);

#endif
