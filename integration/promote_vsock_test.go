//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/integration/harness"
	"cowblk/internal/test"
)

// startVsock, in a guest whose vdb holds a tar of the programs, starts an agent and a back-end that
// reach each other by AF_VSOCK, and attaches the back-end's disks to /dev/nbd0 and /dev/nbd1. The
// attaching process keeps them open; /dev/loop0 over the second disk is closed by each writer. The
// store lies on a tmpfs, which is not frozen with the other file systems. Kernel tracing records
// freezes and thaws (the agent thaws a file system until nothing is left to thaw). Arguments: the
// disks, and the size of the first.
const startVsock = `
set -e
modprobe vsock_loopback
modprobe nbd
tar -xf /dev/vdb -C /run
mount -t tracefs trace /sys/kernel/tracing
cd /sys/kernel/tracing
echo 'p:freeze freeze_super
r:thaw thaw_super failed=$retval:s32' >kprobe_events
echo 1 >events/kprobes/enable
mkdir -p /run/qga /run/store
mount -t tmpfs -o size=80%%,mode=0711 store /run/store
qemu-ga --daemonize --method=vsock-listen --path=1:9999 --pidfile=/run/qga.pid --statedir=/run/qga
cd /run
./cowblk --store /run/store create %[1]s --size %[3]d
./cowblk --store /run/store create %[2]s --size 1M
./cowblk --store /run/store serve %[1]s %[2]s </dev/null >/run/serve.log 2>&1 &
echo $! >/run/pids
n=0
for disk in %[1]s %[2]s; do
	while [ ! -S store/run/$disk.sock ]; do kill -0 $! || { cat /run/serve.log; exit 1; }; sleep 0.2; done
	./vhostnbd store/run/$disk.sock /dev/nbd$n </dev/null >/run/nbd$n.log 2>&1 &
	echo $! >>/run/pids
	while [ ! -e /sys/block/nbd$n/pid ]; do kill -0 $! || { cat /run/nbd$n.log; exit 1; }; sleep 0.2; done
	n=$((n + 1))
done
modprobe loop
losetup --direct-io=on /dev/loop0 /dev/nbd1
`

// cowblkVsock runs a cowblk command in the guest. Argument: its arguments.
const cowblkVsock = `/run/cowblk --store /run/store %s 2>/run/output || { cat /run/output /run/serve.log; exit 1; }`

// frozenVsock prints how many file systems were frozen and thawed since its last run.
const frozenVsock = `
cd /sys/kernel/tracing
echo $(grep -c freeze: trace) frozen, $(grep -c failed=0 trace) thawed
: >trace
`

// copyVsock reads tags with an NBD client, from the URIs that cowblk prints. It prints for each tag
// the digest of the data disk and the start of the mark disk. Arguments: the exports (data before
// mark), their number, and the size of data.
const copyVsock = `
set -e
ulimit -n 65536 # each export opens all the layers of its tag
cd /run
: >uris # of the last time
./cowblk --store /run/store export %[1]s --listen vsock:1:10809 </dev/null >/run/uris 2>/run/export.log &
while [ "$(wc -l </run/uris)" != %[2]d ]; do
	kill -0 $! || { cat /run/export.log; exit 1; }
	sleep 0.2
done
set -- %[1]s
while [ $# != 0 ]; do
	data=$(grep "/$1$" /run/uris) mark=$(grep "/$2$" /run/uris)
	shift 2
	size=$(nbdinfo --size "$data")
	[ "$size" = %[3]d ] || { echo "$data: $size bytes; expected %[3]d"; exit 1; }
	nbdcopy "$data" - >/run/data
	nbdcopy "$mark" - >/run/mark
	sum=$(sha256sum </run/data)
	echo ${sum%%%% *} $(head -c 512 /run/mark)
done
kill $!
wait $!
`

// stopVsock ends the programs and writes the store to vdc as a tar.
const stopVsock = `
set -e
losetup -d /dev/loop0
for pid in $(tac /run/pids); do
	kill $pid
	while kill -0 $pid 2>/dev/null; do sleep 0.1; done
done
tar -C /run/store -S -cf /dev/vdc disks layers
sync
`

// vsockData is the size of the data disk, in bytes. It is small because emulated processors copy
// it.
const vsockData = 16 << 20

// storeSize is the space for a store with a thousand layers of the workload, in bytes.
const storeSize = 16 << 30

// programsTar makes a tar of the programs that run in the guest and returns its path.
func (e *env) programsTar() string {
	e.Helper()
	root, err := harness.Root()
	e.must(err)
	dir, file := filepath.Join(e.dir, "programs"), filepath.Join(e.dir, "programs.raw")
	e.must(os.Mkdir(dir, 0o700))
	binary, err := filepath.Abs(suite.store.Binary)
	e.must(err)
	e.must(os.Symlink(binary, filepath.Join(dir, "cowblk")))
	build := exec.CommandContext(e.ctx, "go", "build", "-o", dir, "./vhostnbd")
	build.Dir, build.Env = filepath.Join(root, "integration"), append(os.Environ(), "CGO_ENABLED=0")
	pack := exec.CommandContext(e.ctx, "tar", "-C", dir, "-chf", file, "cowblk", "vhostnbd")
	for _, cmd := range []*exec.Cmd{build, pack} {
		if out, err := cmd.CombinedOutput(); err != nil {
			e.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	return file
}

// serveFile serves a raw file and returns the back-end.
func (e *env) serveFile(file string, options ...string) *server {
	e.Helper()
	socket := file + ".sock"
	args := append([]string{"serve", "--blk-file", file, "--format", "raw", "--socket-path",
		socket}, options...)
	b, err := harness.StartBackend(e.ctx, exec.Command(suite.store.Binary, args...), socket)
	e.must(err)
	return e.watch(b)
}

// The agent and NBD over AF_VSOCK. A host's kernel usually cannot connect to itself, so both ends
// run in a guest that has the vsock loopback. The workload runs there, too, on the disks of that
// back-end. At the end the store is copied to the host.
func TestPromoteVsock(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	n := e.countPromotions(2)
	file := filepath.Join(e.dir, "store.raw")
	e.must(os.WriteFile(file, nil, 0o600))
	e.must(os.Truncate(file, storeSize))
	root, programs, store := e.serve(e.disk("root", "--from", imageGolden)),
		e.serveFile(e.programsTar(), "--read-only"), e.serveFile(file)
	m := e.boot(harness.MachineOptions{Boot: harness.BootQuick, CPUs: 2, MemoryMiB: 1536,
		Disks: []string{root.Socket, programs.Socket, store.Socket}})
	r := &workloadGuest{Machine: m, data: e.name("data"), mark: e.name("mark"),
		servers: []*server{root, programs, store}}
	e.run(m, fmt.Sprintf(startVsock, r.data, r.mark, vsockData))
	e.run(m, fmt.Sprintf(startLoad, "delete", "/dev/nbd0", "/dev/loop0"))
	r.cowblk = func(args ...string) (string, error) {
		return m.Run(e.ctx, fmt.Sprintf(cowblkVsock, strings.Join(args, " ")))
	}
	r.copy = func(tags []promotion) []tagCopy { return e.copyVsock(r, tags) }
	r.powerOff = func() error {
		e.run(m, stopVsock)
		e.must(m.PowerOff(e.ctx))
		return exec.CommandContext(e.ctx, "tar", "-C", suite.store.Dir, "-xf", file).Run()
	}

	ways := []quiesceMode{{"none", nil}, {"guest", []string{"--agent", "vsock:1:9999", "--timeout",
		"60s"}}}
	tags := e.promoteAll(r, n, ways, func(mode string) {
		t.Helper()
		// The guest has two file systems that can be frozen: its root and the workload's.
		want := map[string]string{"none": "0 frozen, 0 thawed", "guest": "2 frozen, 2 thawed"}[mode]
		test.Equal(t, e.run(m, frozenVsock), want, "promoting with --quiesce", mode)
	})
	copies, marks := e.copyTags(r, tags)
	e.checkTags(r, e.qemu(harness.Debian12), e.finish(r, tags), copies, marks)
}

// copyVsock reads tags as copyOnHost does, in the guest.
func (e *env) copyVsock(r *workloadGuest, tags []promotion) (all []tagCopy) {
	e.Helper()
	var exports []string
	for _, t := range tags {
		exports = append(exports, r.data+"@"+t.name, r.mark+"@"+t.name)
	}
	output := e.run(r.Machine, fmt.Sprintf(copyVsock, strings.Join(exports, " "), len(exports),
		vsockData))
	for line := range strings.Lines(output) {
		data, mark, _ := strings.Cut(strings.TrimSpace(line), " ")
		all = append(all, tagCopy{data: data, mark: mark})
	}
	if len(all) != len(tags) {
		e.Fatalf("expected a line for each of %d tags, found:\n%s", len(tags), output)
	}
	return all
}
