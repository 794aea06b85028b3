#include "data/data_files.h"

#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/text.h"

#define MAX_DEPTH 64

static const char *const text_endings[] = {".txt",      ".jsonl",   ".json",    ".txt.gz",
                                           ".jsonl.gz", ".json.gz", ".txt.zst", ".jsonl.zst",
                                           ".json.zst", NULL};
static const char *const token_endings[] = {".bin", NULL};

const char *const *xp_data_text_endings(void) {
    return text_endings;
}

const char *const *xp_data_token_endings(void) {
    return token_endings;
}

bool xp_data_name_ends(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n > m && strcasecmp(name + n - m, ending) == 0;
}

static bool has_ending(const char *name, const char *const *endings) {
    for (; *endings != NULL; endings++)
        if (xp_data_name_ends(name, *endings))
            return true;
    return false;
}

/* A folder on the way down, to see a link that leads back to it. */
typedef struct ancestor {
    dev_t device;
    ino_t inode;
    const struct ancestor *up;
    int depth;
} ancestor;

typedef struct search {
    xp_data_files *files;
    const char *const *endings;
    int capacity;
} search;

static xp_status no_memory(const char *path) {
    return xp_error(XP_ENOMEM, "%s: out of memory", path);
}

static xp_status add_file(search *s, const char *path, const struct stat *st) {
    xp_data_files *files = s->files;
    if (!S_ISREG(st->st_mode))
        return xp_error(XP_EIO, "%s is no regular file%s", path,
                        S_ISFIFO(st->st_mode) ? "; a pipe goes into `expar tokenize ... -`" : "");
    if (files->n == s->capacity) {
        int capacity = s->capacity == 0 ? 64 : 2 * s->capacity;
        xp_data_file *grown = realloc(files->files, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return no_memory(path);
        files->files = grown;
        s->capacity = capacity;
    }
    char *copy = strdup(path);
    if (copy == NULL)
        return no_memory(path);
    files->files[files->n++] =
        (xp_data_file){.path = copy,
                       .n_bytes = st->st_size,
                       .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
    files->n_bytes += st->st_size;
    return XP_OK;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* ".jsonl.bz2" and the like count as ".bz2": what is in the way is the last one. */
static void count_skipped(xp_data_files *files, const char *path) {
    const char *dot = strrchr(last_part(path), '.');
    char ending[sizeof files->skipped[0].ending] = "";
    if (dot != NULL && dot != last_part(path) && strlen(dot) < sizeof ending)
        for (size_t i = 0; dot[i] != '\0'; i++)
            ending[i] = (char)tolower((unsigned char)dot[i]);
    files->n_skipped++;
    xp_data_skipped *slot = NULL;
    for (int i = 0; i < files->n_skipped_kinds && slot == NULL; i++)
        if (strcmp(files->skipped[i].ending, ending) == 0)
            slot = &files->skipped[i];
    if (slot == NULL && files->n_skipped_kinds < XP_DATA_MAX_SKIPPED_KINDS) {
        slot = &files->skipped[files->n_skipped_kinds++];
        *slot = (xp_data_skipped){0};
        memcpy(slot->ending, ending, sizeof ending);
        snprintf(slot->example, sizeof slot->example, "%.255s", path);
    }
    if (slot != NULL)
        slot->n++;
}

static xp_status add_path(search *s, const char *path, const ancestor *up);

typedef struct folder_entry {
    search *s;
    const ancestor *up;
} folder_entry;

static xp_status add_entry(void *context, const char *folder, const char *name) {
    const folder_entry *entry = context;
    if (name[0] == '.')
        return XP_OK;
    char *child = xp_path_join(folder, name);
    xp_status status = child == NULL ? no_memory(folder) : add_path(entry->s, child, entry->up);
    free(child);
    return status;
}

static xp_status add_folder(search *s, const char *path, const struct stat *st,
                            const ancestor *up) {
    ancestor here = {.device = st->st_dev, .inode = st->st_ino, .up = up};
    here.depth = up == NULL ? 0 : up->depth + 1;
    for (const ancestor *a = up; a != NULL; a = a->up)
        if (a->device == here.device && a->inode == here.inode)
            return XP_OK; /* a link to a folder that is being read */
    if (here.depth > MAX_DEPTH)
        return xp_error(XP_EIO, "%s: folders more than %d deep", path, MAX_DEPTH);
    folder_entry context = {s, &here};
    return xp_folder_each(path, add_entry, &context);
}

/* A path found in a folder or by a glob. */
static xp_status add_path(search *s, const char *path, const ancestor *up) {
    struct stat st;
    bool fits = has_ending(last_part(path), s->endings);
    if (stat(path, &st) != 0 && errno == ENOENT && !fits) {
        count_skipped(s->files, path); /* a link that leads nowhere */
        return XP_OK;
    }
    if (stat(path, &st) != 0)
        return xp_error(errno == ENOENT ? XP_ENOENT : XP_EIO, "cannot read %s: %s", path,
                        strerror(errno));
    if (S_ISDIR(st.st_mode))
        return add_folder(s, path, &st, up);
    if (fits)
        return add_file(s, path, &st);
    count_skipped(s->files, path);
    return XP_OK;
}

static xp_status add_glob(search *s, const char *pattern) {
    glob_t found;
    int result = glob(pattern, 0, NULL, &found);
    if (result == GLOB_NOMATCH)
        return XP_OK;
    if (result != 0)
        return xp_error(XP_EIO, "cannot search for %s", pattern);
    xp_status status = XP_OK;
    for (size_t i = 0; i < found.gl_pathc && status == XP_OK; i++)
        status = add_path(s, found.gl_pathv[i], NULL);
    globfree(&found);
    return status;
}

char *xp_data_advice(const char *path) {
    static const struct {
        const char *ending, *text;
    } kinds[] = {
        {".parquet", "Parquet is not read here; a Parquet reader can pipe JSON lines, for example "
                     "duckdb -c \"COPY (SELECT text FROM '%s') TO '/dev/stdout' (FORMAT json)\" | "
                     "expar tokenize --tokenizer DIR --out ids.bin - (then training.dataset = "
                     "\"tokens\")"},
        {".arrow", "Arrow files are not read here; pipe JSON lines into expar tokenize "
                   "--tokenizer DIR --out ids.bin -, for example from datasets.Dataset.from_file("
                   "'%s').to_json('/dev/stdout')"},
        {".csv", "CSV is not read here; pipe JSON lines into expar tokenize, for example duckdb -c "
                 "\"COPY (SELECT text FROM '%s') TO '/dev/stdout' (FORMAT json)\" | expar tokenize "
                 "--tokenizer DIR --out ids.bin -"},
        {".xz",
         "xz is not read here: xz -dc '%s' | expar tokenize --tokenizer DIR --out ids.bin -"},
        {".bz2",
         "bzip2 is not read here: bzip2 -dc '%s' | expar tokenize --tokenizer DIR --out ids.bin -"},
        {".lz4",
         "lz4 is not read here: lz4 -dc '%s' | expar tokenize --tokenizer DIR --out ids.bin -"},
        {".zip", "archives are not read here: unzip -p '%s' | expar tokenize --tokenizer DIR --out "
                 "ids.bin -"},
        {".tar", "archives are not read here: unpack %s into a folder and name that"},
        {".tar.gz", "archives are not read here: unpack %s into a folder and name that"},
        {".tgz", "archives are not read here: unpack %s into a folder and name that"},
        {".tar.zst", "archives are not read here: unpack %s into a folder and name that"},
        {".npy", "NumPy files are not read here: numpy.load('%s').astype('<u4').tofile('ids.bin') "
                 "writes token ids that are (training.dataset = \"tokens\")"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!xp_data_name_ends(path, kinds[i].ending))
            continue;
        const char *name = strstr(kinds[i].text, "%s");
        xp_text text = {0};
        xp_text_add(&text, kinds[i].text, (size_t)(name - kinds[i].text));
        xp_text_puts(&text, path);
        xp_text_puts(&text, name + 2);
        if (text.failed)
            xp_text_free(&text);
        return text.data;
    }
    return NULL;
}

void xp_data_files_describe_skipped(const xp_data_files *files, char *text, size_t n_text) {
    text[0] = '\0';
    if (files->n_skipped == 0)
        return;
    size_t at = (size_t)snprintf(text, n_text, "skipped %lld file%s of other kinds",
                                 (long long)files->n_skipped, files->n_skipped == 1 ? "" : "s");
    int64_t named = 0;
    for (int i = 0; i < files->n_skipped_kinds && at + 48 < n_text; i++) {
        const xp_data_skipped *kind = &files->skipped[i];
        const char *ending = kind->ending[0] != '\0' ? kind->ending : "without an ending";
        at += (size_t)snprintf(text + at, n_text - at, "%s%lld %s", i == 0 ? ": " : ", ",
                               (long long)kind->n, ending);
        named += kind->n;
    }
    if (named < files->n_skipped && at + 32 < n_text)
        snprintf(text + at, n_text - at, ", %lld others", (long long)(files->n_skipped - named));
}

static xp_status none_found(const char *path, const char *const *endings,
                            const xp_data_files *found) {
    xp_text list = {0};
    for (; *endings != NULL; endings++)
        xp_text_printf(&list, "%s%s", list.length > 0 ? ", " : "", *endings);
    char skipped[256];
    xp_data_files_describe_skipped(found, skipped, sizeof skipped);
    char *advice = NULL;
    for (int i = 0; i < found->n_skipped_kinds && advice == NULL; i++)
        advice = xp_data_advice(found->skipped[i].example);
    xp_status status = xp_error(
        XP_ENOENT, "no data at %s: give a file, a folder or a glob of files ending in %s%s%s%s%s",
        path, list.data == NULL ? "?" : list.data, skipped[0] != '\0' ? " (" : "", skipped,
        skipped[0] != '\0' ? "). " : "", advice != NULL ? advice : "");
    free(advice);
    xp_text_free(&list);
    return status;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const xp_data_file *)a)->path, ((const xp_data_file *)b)->path);
}

xp_status xp_data_files_find(const char *path, const char *const *endings, xp_data_files *files) {
    xp_data_files found = {0};
    search s = {.files = &found, .endings = endings};
    struct stat st;
    xp_status status = XP_OK;
    if (stat(path, &st) == 0)
        status = add_path(&s, path, NULL);
    else if (errno == ENOENT || errno == ENOTDIR)
        status = add_glob(&s, path);
    else
        status = xp_error(XP_EIO, "cannot read %s: %s", path, strerror(errno));
    if (status == XP_OK && found.n == 0)
        status = none_found(path, endings, &found);
    if (status != XP_OK) {
        xp_data_files_free(&found);
        return status;
    }
    qsort(found.files, (size_t)found.n, sizeof *found.files, by_path);
    *files = found;
    return XP_OK;
}

xp_status xp_data_files_stdin(xp_data_files *files) {
    *files = (xp_data_files){.files = calloc(1, sizeof *files->files), .n = 1};
    if (files->files != NULL)
        files->files[0].path = strdup("-");
    if (files->files != NULL && files->files[0].path != NULL)
        return XP_OK;
    free(files->files);
    *files = (xp_data_files){0};
    return xp_error(XP_ENOMEM, "standard input: out of memory");
}

void xp_data_files_free(xp_data_files *files) {
    for (int i = 0; i < files->n; i++)
        free(files->files[i].path);
    free(files->files);
    *files = (xp_data_files){0};
}
