/* LD_PRELOAD library that fails allocations larger than a limit. The limit is a 64-bit number of bytes in the
 * file that SHORT_MEMORY names; 0 means no limit. It is read on each allocation, so that a program can change
 * it.
 *
 * A limit for the whole process (RLIMIT_AS, a cgroup) would also affect V8 and glib, which abort the process
 * when an allocation fails. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static const volatile uint64_t* limit;

__attribute__((constructor)) static void open_limit(void) {
  const char* file = getenv("SHORT_MEMORY");
  const int descriptor = file == NULL ? -1 : open(file, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  void* mapped = mmap(NULL, sizeof *limit, PROT_READ, MAP_SHARED, descriptor, 0);
  if (mapped != MAP_FAILED) limit = mapped;
  close(descriptor);
}

static int refused(size_t size) {
  if (limit == NULL || *limit == 0 || size <= *limit) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return refused(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) {
  return size != 0 && refused(count * size) ? NULL : __libc_calloc(count, size);
}
void* realloc(void* block, size_t size) { return refused(size) ? NULL : __libc_realloc(block, size); }
void* memalign(size_t alignment, size_t size) {
  return refused(size) ? NULL : __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** block, size_t alignment, size_t size) {
  if (refused(size)) return ENOMEM;
  *block = __libc_memalign(alignment, size);
  return *block == NULL ? ENOMEM : 0;
}
