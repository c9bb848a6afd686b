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
)

// startVsock, in a guest whose vdb holds the cowblk program, starts an agent and
// a back-end that reach each other by AF_VSOCK. The store lies on a tmpfs, which
// is not frozen with the other file systems. The kernel notes what is frozen
// and thawed (the agent thaws each until there is nothing to thaw). Argument: the program's size.
const startVsock = `
set -e
modprobe vsock_loopback
head -c %d /dev/vdb >/run/cowblk
chmod +x /run/cowblk
mount -t tracefs trace /sys/kernel/tracing
cd /sys/kernel/tracing
echo 'p:freeze freeze_super
r:thaw thaw_super failed=$retval:s32' >kprobe_events
echo 1 >events/kprobes/enable
mkdir -p /run/qga /run/store
mount -t tmpfs store /run/store
qemu-ga --daemonize --method=vsock-listen --path=1:9999 --pidfile=/run/qga.pid --statedir=/run/qga
cd /run
head -c 16M /dev/urandom >image.raw
./cowblk --store /run/store import image.raw image
./cowblk --store /run/store create vm --from image
./cowblk --store /run/store serve vm </dev/null >/run/serve.log 2>&1 &
while ! ./cowblk --store /run/store info vm | grep -q 'state .*serv'; do sleep 0.2; done
`

// promoteVsock promotes and says what became of the file systems.
const promoteVsock = `
set -e
: >/sys/kernel/tracing/trace
/run/cowblk --store /run/store promote vm --tag %[1]s --quiesce guest --agent vsock:1:9999 --timeout 60s || { cat /run/serve.log; exit 1; }
echo $(grep -c freeze: /sys/kernel/tracing/trace) frozen, $(grep -c failed=0 /sys/kernel/tracing/trace) thawed
echo %[1]s >/root/written
sync /root/written
`

// copyVsock reads a tag with an NBD client, from the URI that cowblk prints.
const copyVsock = `
set -e
cd /run
./cowblk --store /run/store export vm@first vm@second --listen vsock:1:10809 </dev/null >/run/uris 2>/run/export.log &
while [ "$(wc -l </run/uris)" != 2 ]; do
	kill -0 $! || { cat /run/export.log; exit 1; }
	sleep 0.2
done
cat /run/uris
while read -r uri; do
	nbdcopy "$uri" - | cmp - /run/image.raw
	nbdinfo --size "$uri"
done </run/uris
kill $!
wait $!
`

// The agent and NBD by AF_VSOCK. A machine's own kernel rarely connects it to
// itself, so both ends run in a guest that has the loopback for it.
func TestPromoteVsock(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	program, err := os.ReadFile(suite.store.Binary)
	e.must(err)
	// A disk has whole sectors.
	file := e.write("program.raw", string(program)+strings.Repeat("\x00", -len(program)&511))
	socket := filepath.Join(e.dir, "program.sock")
	b, err := harness.StartBackend(e.ctx, exec.Command(suite.store.Binary, "serve", "--blk-file", file, "--read-only", "--socket-path", socket), socket)
	e.must(err)
	e.watch(b)
	root := e.serve(e.disk("root", "--from", imageGolden))
	m := e.boot(harness.MachineOptions{Boot: harness.BootQuick, CPUs: 2, MemoryMiB: 768, Disks: []string{root.Socket, socket}})
	e.run(m, fmt.Sprintf(startVsock, len(program)))
	for _, tag := range []string{"first", "second"} {
		said := e.run(m, fmt.Sprintf(promoteVsock, tag))
		t.Log(said)
		// Of the file systems that can be frozen, this guest has one.
		if !strings.HasSuffix(said, "\n1 frozen, 1 thawed") {
			t.Errorf("promoting %s: expected one file system to be frozen and thawed, found:\n%s", tag, said)
		}
	}
	t.Log(e.run(m, copyVsock))
	e.must(m.PowerOff(e.ctx))
}
