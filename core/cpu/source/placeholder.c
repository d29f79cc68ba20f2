/* Stands for the kernels until they are there: a library that only says its version. */

__attribute__((visibility("default"))) int corelm_version(void);

int corelm_version(void) { return 1; }
