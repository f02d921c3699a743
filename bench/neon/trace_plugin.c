// A plugin of QEMU's user emulation: writes the address of every instruction between two marks, 8 bytes each.
//
// The marks are hints that no compiler emits and every CPU ignores. Debian ships no plugin header, so the few
// declarations that are needed stand here (plugin interface version 1).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*qemu_plugin_tb_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_exec_cb)(unsigned int, void *);
typedef void (*qemu_plugin_exit_cb)(qemu_plugin_id_t, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_tb_cb);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, qemu_plugin_exec_cb, int flags, void *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_exit_cb, void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static const uint32_t kBegin = 0xd5032fdf, kEnd = 0xd5032fff;  // hint #126, hint #127
static FILE *trace;
static int is_on;

static void begin(unsigned int cpu, void *unused) { is_on = 1; }
static void end(unsigned int cpu, void *unused) { is_on = 0; }
static void step(unsigned int cpu, void *address) {
  if (is_on) fwrite(&address, sizeof address, 1, trace);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
    const uint32_t code = *(const uint32_t *)qemu_plugin_insn_data(insn);
    qemu_plugin_register_vcpu_insn_exec_cb(insn, code == kBegin ? begin : code == kEnd ? end : step, 0,
                                           (void *)(uintptr_t)qemu_plugin_insn_vaddr(insn));
  }
}

static void finished(qemu_plugin_id_t id, void *unused) { fclose(trace); }

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc,
                                                               char **argv) {
  trace = fopen(getenv("TRACE_TO"), "wb");
  if (!trace) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
