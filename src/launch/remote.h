/**
 * Messages of shims on other nodes: lines of their standard error, which mpirun carries to the
 * launcher. Each is written twice with a checksum, because mpirun may put another rank's output
 * into the middle of a line.
 */
#ifndef XP_LAUNCH_REMOTE_H
#define XP_LAUNCH_REMOTE_H

#include "launch/message.h"

#define XP_REMOTE_LINE 4000 /* bytes of a line with its newline: below PIPE_BUF, so one write */

/** Make the line of a message. @return its length */
int xp_remote_print(const xp_launch_message *message, char line[XP_REMOTE_LINE]);
/** To standard error. */
void xp_remote_write(const xp_launch_message *message);
/**
 * @param line  NUL-terminated, without the newline
 * @param[out] message  valid when *whole
 * @return true: the line is such a message, or a damaged one, and not for people
 */
bool xp_remote_parse(const char *line, xp_launch_message *message, bool *whole);

#endif
