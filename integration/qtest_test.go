//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cowblk/integration/harness"
)

// storageDaemon is a script that qtest starts instead of qemu-storage-daemon, with the same
// arguments: --blockdev driver=file,…,filename=FILE and --export
// type=vhost-user-blk,…,addr.str=FD,…,num-queues=N for each disk. It serves disks of one layer over
// FILE until SIGTERM. Argument: the cowblk binary.
const storageDaemon = `#!/bin/sh
set -e
store=$(mktemp -d "$PWD/store.XXXXXX")
cowblk() { %[1]s --store "$store" "$@"; }
pids= status=0
stop() {
	kill $pids
	for pid in $pids; do wait $pid || status=1; done
	exit $status
}
trap stop TERM
n=0
for arg; do
	case $arg in
	driver=file,*) image=${arg##*,filename=} ;;
	type=vhost-user-blk,*)
		fd=${arg##*,addr.str=} queues=${arg##*,num-queues=} n=$((n + 1))
		cowblk create disk$n --base "$PWD/$image" >&2
		%[1]s --store "$store" serve disk$n --fd "${fd%%%%,*}" --queues "${queues%%%%,*}" &
		pids="$pids $!"
		;;
	esac
done
while :; do wait $pids; done
`

// qtests returns the paths of the vhost-user-blk tests in QEMU's own suite.
func qtests() []string {
	return []string{"basic", "hotplug", "idx", "indirect", "multiqueue", "nxvirtq"}
}

// QEMU's own tests of a vhost-user-blk device, with cowblk in place of qemu-storage-daemon. The
// tests and a QEMU for them are built from Debian 13's source package. That takes ten minutes, so
// this test is part of "make test-qemus" only.
func TestQTests(t *testing.T) {
	if !onAll() {
		t.Skipf("%s is not \"all\": building QEMU's tests takes ten minutes; make test-qemus runs this", qemusEnv)
	}
	e := newEnv(t)
	q, err := harness.NewQTest(context.Background()) // the build may take longer than a test may
	e.must(err)
	daemon := filepath.Join(e.dir, "storage-daemon")
	e.must(os.WriteFile(daemon, fmt.Appendf(nil, storageDaemon, suite.store.Binary), 0o755))
	qtest := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(e.ctx, q.Tests, args...)
		cmd.Dir = e.dir
		cmd.Env = append(os.Environ(), "QTEST_QEMU_BINARY="+q.QEMU,
			"QTEST_QEMU_STORAGE_DAEMON_BINARY="+daemon)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		out, err := cmd.CombinedOutput()
		if err != nil {
			// a test that aborts leaves its back-end running
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			t.Errorf("qos-test %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	var ran []string
	for _, line := range strings.Split(qtest("-l"), "\n") {
		dir, leaf := path.Split(strings.TrimPrefix(line, "# "))
		if base := path.Base(dir); base != "vhost-user-blk-tests" &&
			base != "vhost-user-blk-pci-tests" {
			continue
		}
		if out := qtest("-p", dir+leaf); !strings.Contains(out, "\nok 1 "+dir+leaf) {
			t.Errorf("%s did not succeed:\n%s", leaf, out)
		}
		ran = append(ran, leaf)
	}
	slices.Sort(ran)
	if !slices.Equal(ran, qtests()) {
		t.Errorf("the tests %q ran; expected %q", ran, qtests())
	}
	t.Logf("%d tests on QEMU built from Debian 13's source: %s", len(ran), strings.Join(ran, ", "))
}
