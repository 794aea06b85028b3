/** A mapped file that another program makes shorter, or that its disk no longer gives: the kernel
 * sends SIGBUS. */
#ifndef XP_CORE_BUS_ERROR_H
#define XP_CORE_BUS_ERROR_H

/** For programs, once, at their start: a SIGBUS in a mapped file ends the program with exit code 1
 * and one line that names the file. Every other SIGBUS stays what it was. */
void xp_bus_error_report(void);

#endif
