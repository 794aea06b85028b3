#ifndef CHECKOP_ATTENTION_SLACK_H
#define CHECKOP_ATTENTION_SLACK_H

#include "checkop.h"

/** ck_case.slack of attention_backward in bf16: what the rounding of dS adds to dq. */
double ck_attention_slack(const ck_case *c, const ck_image *want, int buffer, int64_t element);

#endif
