/* Lets large allocations fail; a test loads it before all libraries (LD_PRELOAD). For glibc. */

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static atomic_long count;
static long at;
static int and_later;
static size_t least; /* 0: nothing is counted */

/* From now on, count blocks of at least `size` bytes; the one of the number `number` fails, and with
   `later` all after it. */
void failing_malloc(long number, int later, size_t size)
{
    count = 0;
    at = number;
    and_later = later;
    least = size;
}

long failing_malloc_count(void) { return count; }

static int fails(size_t size)
{
    if (!least || size < least)
        return 0;
    long number = ++count;
    if (number == at || (and_later && at && number > at)) {
        errno = ENOMEM;
        return 1;
    }
    return 0;
}

void *malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }

void *calloc(size_t items, size_t size)
{
    return fails(items * size) ? NULL : __libc_calloc(items, size);
}

void *realloc(void *block, size_t size) { return fails(size) ? NULL : __libc_realloc(block, size); }

void *memalign(size_t alignment, size_t size)
{
    return fails(size) ? NULL : __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size)
{
    void *made = memalign(alignment, size);
    if (!made)
        return ENOMEM;
    *block = made;
    return 0;
}
