/**
 * Status codes, the thread's last error, and the macros every other header uses.
 *
 * A function that finds an error fills the calling thread's last error (what happened, where, what
 * to do about it) and returns a negative code; callers pass the code up. Nothing in the library
 * prints, exits or aborts.
 */
#ifndef EXPAR_STATUS_H
#define EXPAR_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define XP_API          __attribute__((visibility("default")))
#define XP_NODISCARD    __attribute__((warn_unused_result))
#define XP_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define XP_API
#define XP_NODISCARD
#define XP_PRINTF(a, b)
#endif

#define XP_STATUS_LIST(X)                                                                          \
    X(XP_OK, 0, "ok")                                                                              \
    X(XP_EINVAL, -1, "invalid argument")                                                           \
    X(XP_ENOMEM, -2, "out of memory")                                                              \
    X(XP_EIO, -3, "input/output error")                                                            \
    X(XP_EFORMAT, -4, "malformed file or text")                                                    \
    X(XP_ECONFIG, -5, "wrong configuration")                                                       \
    X(XP_ECOMM, -6, "communication between ranks failed")                                          \
    X(XP_ENUMERIC, -7, "NaN or Inf")                                                               \
    X(XP_ENOTSUP, -8, "not supported here")                                                        \
    X(XP_ENOENT, -9, "not found")                                                                  \
    X(XP_EINTERRUPTED, -10, "interrupted")                                                         \
    X(XP_EDEVICE, -11, "accelerator error")                                                        \
    X(XP_EINTERNAL, -12, "internal error")                                                         \
    X(XP_EBUSY, -13, "in use")

#define XP_STATUS_ENUM(name, value, text) name = value,
typedef enum xp_status { XP_STATUS_LIST(XP_STATUS_ENUM) } xp_status;
#undef XP_STATUS_ENUM

/** The code's name, "XP_EINVAL"; "XP_?" for a value that is no code. Static storage. */
XP_API const char *xp_status_name(xp_status status);
/** One or two English words for the code. Static storage. */
XP_API const char *xp_status_text(xp_status status);

/**
 * The calling thread's last error text; "" when there was none. Valid until the thread's next
 * failing call. Never a multi-line text.
 */
XP_API const char *xp_last_error(void);

/** Fill the calling thread's last error and return `code`: `return xp_error(XP_EINVAL, ...)`. */
XP_API xp_status xp_error(xp_status code, const char *format, ...) XP_PRINTF(2, 3);

/** Put "format: " in front of the last error and return `code`: adds where to what. */
XP_API xp_status xp_error_context(xp_status code, const char *format, ...) XP_PRINTF(2, 3);

/** Forget the calling thread's last error. */
XP_API void xp_error_clear(void);

/** Evaluate once; leave the function with the status when it is not XP_OK. */
#define XP_TRY(expr)                                                                               \
    do {                                                                                           \
        xp_status xp_try_status_ = (expr);                                                         \
        if (xp_try_status_ != XP_OK)                                                               \
            return xp_try_status_;                                                                 \
    } while (0)

/** The same for functions with something to undo: assigns `status` and jumps to `label`. */
#define XP_TRY_GOTO(status, expr, label)                                                           \
    do {                                                                                           \
        (status) = (expr);                                                                         \
        if ((status) != XP_OK)                                                                     \
            goto label;                                                                            \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
