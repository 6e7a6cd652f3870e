/* A stand-in for NVIDIA's pyxis: it takes the options of srun that pyxis adds, and shows each to
   the tasks as a variable, so that a test can see what a container would have been. */
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>

SPANK_PLUGIN(stub_of_pyxis, 1)

#define NUM_OPTIONS 8
static const char *NAMES[NUM_OPTIONS] = {
    "container-image", "container-mounts", "container-workdir", "container-env",
    "container-name", "no-container-mount-home", "container-writable", "no-container-entrypoint"};
static const int TAKES_VALUE[NUM_OPTIONS] = {1, 1, 1, 1, 1, 0, 0, 0};
static char *values[NUM_OPTIONS];

static int remember(int option, const char *value, int remote) {
  (void)remote;
  values[option] = strdup(value ? value : "1");
  return 0;
}

int slurm_spank_init(spank_t spank, int argc, char **argv) {
  (void)argc;
  (void)argv;
  for (int i = 0; i < NUM_OPTIONS; i++) {
    struct spank_option option = {0};
    option.name = (char *)NAMES[i];
    option.arginfo = TAKES_VALUE[i] ? "VALUE" : NULL;
    option.usage = "[stub of pyxis]";
    option.has_arg = TAKES_VALUE[i];
    option.val = i;
    option.cb = (spank_opt_cb_f)remember;
    if (spank_option_register(spank, &option) != ESPANK_SUCCESS) return -1;
  }
  return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv) {
  (void)argc;
  (void)argv;
  char variable[64];
  for (int i = 0; i < NUM_OPTIONS; i++) {
    if (!values[i]) continue;
    snprintf(variable, sizeof variable, "STUB_%s", NAMES[i]);
    for (char *c = variable; *c; c++)
      if (*c == '-') *c = '_';
    spank_setenv(spank, variable, values[i], 1);
  }
  return 0;
}
