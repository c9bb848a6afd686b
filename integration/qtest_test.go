//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// storageDaemon is a program that qtest starts instead of qemu-storage-daemon,
// with the same arguments: --blockdev driver=file,…,filename=FILE and
// --export type=vhost-user-blk,…,addr.str=FD,…,num-queues=N for each disk. It
// serves disks of one layer over FILE until SIGTERM. Arguments: cowblk.
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

// olderMemory is a QEMU that has memory-backend-shm under the name that QEMU had
// for it before 9.1. Arguments: the program.
const olderMemory = `#!/bin/bash
exec %s "${@/memory-backend-shm,/memory-backend-memfd,share=on,}"
`

// qtests are the tests of a vhost-user-blk device in QEMU's own suite.
func qtests() []string {
	return []string{"basic", "hotplug", "idx", "indirect", "multiqueue", "nxvirtq"}
}

// QEMU's own tests of a vhost-user-blk device, from Debian's source package, with
// cowblk in the place of qemu-storage-daemon. The build takes minutes, so this is
// part of "make test-qemus" only.
func TestQTests(t *testing.T) {
	if !onAll() {
		t.Skipf("%s is not \"all\": building QEMU's tests takes minutes; make test-qemus runs this", qemusEnv)
	}
	for _, name := range everyQEMU() {
		t.Run("QEMU of "+name, func(t *testing.T) {
			e := newEnv(t)
			qemu := e.qemu(name)
			tests, err := harness.QTests(e.ctx)
			e.must(err)
			script := func(file, text string) string {
				t.Helper()
				file = filepath.Join(e.dir, file)
				e.must(os.WriteFile(file, []byte(text), 0o755))
				return file
			}
			emulator := script("qemu-system-x86_64", fmt.Sprintf(olderMemory, qemu.Program))
			daemon := script("storage-daemon", fmt.Sprintf(storageDaemon, suite.store.Binary))
			qtest := func(args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(e.ctx, tests, args...)
				cmd.Dir = e.dir
				cmd.Env = append(os.Environ(), "QTEST_QEMU_BINARY="+emulator, "QTEST_QEMU_STORAGE_DAEMON_BINARY="+daemon)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("qos-test %s: %v\n%s", strings.Join(args, " "), err, out)
				}
				return string(out)
			}
			var ran []string
			for _, line := range strings.Split(qtest("-l"), "\n") {
				dir, leaf := path.Split(strings.TrimSpace(line))
				// The same tests exist for other machines: one is enough.
				if path.Base(dir) != "vhost-user-blk-tests" && path.Base(dir) != "vhost-user-blk-pci-tests" || slices.Contains(ran, leaf) {
					continue
				}
				out := qtest("-p", dir+leaf, "--tap")
				if !strings.Contains(out, "\nok 1 ") {
					t.Errorf("%s: no test has run:\n%s", leaf, out)
				}
				ran = append(ran, leaf)
			}
			slices.Sort(ran)
			if !slices.Equal(ran, qtests()) {
				t.Errorf("the tests %q ran; expected %q", ran, qtests())
			}
			t.Logf("QEMU %s: %d tests passed", qemu.Version, len(ran))
		})
	}
}
