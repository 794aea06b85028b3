/* The description of a GPU by the name that its driver reports, and all names. */
#include <string.h>
#include "predict/hardware_files.h"

xp_status xp_hardware_of_model(const char *model, xp_hardware *hardware) {
    xp_hardware_list list;
    xp_hardware h;
    size_t longest = 0;
    XP_TRY(xp_hardware_list_installed(&list));
    for (int i = 0; i < list.n; i++)
        if (xp_hardware_read(list.names[i], &h) == XP_OK && strlen(h.model) > longest &&
            strstr(model, h.model)) {
            longest = strlen(h.model);
            *hardware = h;
        }
    return longest > 0 ? XP_OK
                       : xp_error(XP_ENOENT, "nothing is known about the GPU \"%s\"", model);
}

xp_status xp_hardware_names(xp_text *names) {
    xp_hardware_list list;
    XP_TRY(xp_hardware_list_installed(&list));
    for (int i = 0; i < list.n; i++)
        xp_text_printf(names, "%s%s", i > 0 ? ", " : "", list.names[i]);
    return XP_OK;
}
