/* The effective configuration as a flat list of keys. */
#include <stdlib.h>
#include <string.h>
#include "report/run.h"

typedef struct span {
    const char *data;
    size_t n;
} span;

static span trim(const char *from, const char *to) {
    while (from < to && (*from == ' ' || *from == '\t'))
        from++;
    while (to > from && (to[-1] == ' ' || to[-1] == '\t' || to[-1] == '\r'))
        to--;
    return (span){from, (size_t)(to - from)};
}

static bool is_key(span s) {
    for (size_t i = 0; i < s.n; i++)
        if (!(s.data[i] == '_' || (s.data[i] >= 'a' && s.data[i] <= 'z') ||
              (s.data[i] >= '0' && s.data[i] <= '9')))
            return false;
    return s.n > 0;
}

static xp_status add(xp_report_setting **settings, int *n, const span parts[3]) {
    xp_report_setting *grown = realloc(*settings, (size_t)(*n + 1) * sizeof *grown);
    if (!grown)
        return xp_error(XP_ENOMEM, "no memory for a configuration");
    *settings = grown;
    const span section = parts[0], name = parts[1], value = parts[2];
    xp_report_setting *s = &grown[*n];
    s->key = malloc(section.n + name.n + 2);
    s->value = strndup(value.data, value.n);
    if (!s->key || !s->value) {
        free(s->key);
        free(s->value);
        return xp_error(XP_ENOMEM, "no memory for a configuration");
    }
    memcpy(s->key, section.data, section.n);
    s->key[section.n] = '.';
    memcpy(s->key + section.n + 1, name.data, name.n);
    s->key[section.n + 1 + name.n] = '\0';
    (*n)++;
    return XP_OK;
}

/* "key = value", or "# key: what stands for it" of a key that is not set. */
static xp_status read_line(span section, const char *from, const char *to,
                           xp_report_setting **settings, int *n) {
    const bool unset = *from == '#';
    const char *sign = memchr(from, unset ? ':' : '=', (size_t)(to - from));
    if (!sign || section.n == 0)
        return XP_OK;
    const span parts[3] = {section, trim(from + unset, sign), trim(sign + 1, to)};
    return is_key(parts[1]) ? add(settings, n, parts) : XP_OK;
}

xp_status xp_report_parse_config(const char *text, xp_report_setting **settings, int *n_settings) {
    span section = {text, 0};
    *settings = NULL;
    *n_settings = 0;
    for (const char *from = text; *from;) {
        const char *end = strchrnul(from, '\n');
        if (*from == '[' && end > from + 1 && memchr(from, ']', (size_t)(end - from)))
            section = trim(from + 1, (const char *)memchr(from, ']', (size_t)(end - from)));
        else if (end > from)
            XP_TRY(read_line(section, from, end, settings, n_settings));
        from = *end ? end + 1 : end;
    }
    return XP_OK;
}
