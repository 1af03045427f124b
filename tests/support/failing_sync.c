/* fsync and fdatasync that fail while the file named by NEXUS_TEST_FAIL_SYNC is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int fails(void) {
  const char *path = getenv("NEXUS_TEST_FAIL_SYNC");
  return path != NULL && access(path, F_OK) == 0;
}

int fsync(int file) {
  static int (*real)(int);
  if (fails()) { errno = EIO; return -1; }
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return real(file);
}

int fdatasync(int file) {
  static int (*real)(int);
  if (fails()) { errno = EIO; return -1; }
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return real(file);
}
