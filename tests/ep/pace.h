/** Time limits for tests whose ranks are threads: as short as this machine allows just now. */
#ifndef EP_PACE_H
#define EP_PACE_H

/**
 * A limit that ranks at work do not exceed: 20 times the longest barrier among n_ranks threads in a short measurement (a busy
 * machine leaves a thread waiting for its turn that long now and then), at least `least_s`, at most 5 s.
 */
double ep_time_limit(int n_ranks, double least_s);

#endif
