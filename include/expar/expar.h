/** All public headers. */
#ifndef EXPAR_EXPAR_H
#define EXPAR_EXPAR_H

#include "expar/comm.h"
#include "expar/device.h"
#include "expar/ep.h"
#include "expar/fused_activation.h"
#include "expar/grouped_gemm.h"
#include "expar/moe.h"
#include "expar/status.h"
#include "expar/tensor.h"
#include "expar/version.h"

#endif
