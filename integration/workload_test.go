//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cowblk/integration/harness"
)

// startLoad writes to two disks, data (of 16 MiB or more) and mark, until stopLoad.
//
// A database commits transactions numbered from 1. After each COMMIT has returned, its number is
// written to the start of mark, and then to /run/acks. At any instant the number in mark has been
// committed, and at most one later transaction has begun. Two disks promoted at the same instant
// must agree on this. Beside the database, fio overwrites an area that it has filled before and
// verifies it: at any instant every 4 KiB block holds one of its checksums. (SQLite needs
// synchronous=EXTRA for a committed transaction to survive a power cut in journal mode "delete".)
// Arguments: SQLite's journal mode, "delete" or "wal", and the devices of data and mark.
//
// The number reaches mark at the last close of the device, so no other process may open the device
// after a write, as udev does.
const startLoad = `
set -e
if [ -d /run/systemd/system ]; then
	# udev starts the guest agent when it finds its virtio-serial port (device 3): on a busy host that may be after the boot.
	while grep -qs 0x0003 /sys/bus/virtio/devices/*/device && ! systemctl -q is-active qemu-guest-agent; do sleep 0.1; done
	systemctl stop systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd.service
fi
mkfs.ext4 -q -F -b 4096 %[2]s
mount -t ext4 %[2]s /mnt
cat >/run/load.fio <<JOBS
[global]
filename=/mnt/area
size=4M
bs=4k
direct=1
ioengine=libaio
iodepth=4
verify=crc32c
JOBS
fio --output=/run/fill.out --section=fill - <<JOBS
$(cat /run/load.fio)
do_verify=0
[fill]
rw=write
JOBS
cat >>/run/load.fio <<JOBS
verify_fatal=1
randrepeat=0
rate_iops=150
[load]
rw=randwrite
JOBS
cat >/run/verify <<'SCRIPT'
passes=0
while [ ! -e /run/stop ]; do
	fio --output=/run/load.out /run/load.fio >/run/load.err 2>&1 || { cat /run/load.err /run/load.out; exit 1; }
	passes=$((passes + 1))
done
echo "$passes passes"
SCRIPT
cat >/run/commit <<'SCRIPT'
sqlite3 /mnt/db 'PRAGMA journal_mode=%[1]s; PRAGMA synchronous=EXTRA;
	CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT NOT NULL);'
seq 1000000 | sed "s|.*|BEGIN; INSERT INTO t VALUES (&, printf('%%0120d', &)); COMMIT; SELECT CASE writefile('%[3]s', printf('%%-512d', &)) WHEN 512 THEN & END;|" |
	sqlite3 -bail -cmd 'PRAGMA synchronous=EXTRA' /mnt/db >/run/acks
SCRIPT
for job in verify commit; do
	(set +e; sh /run/$job >/run/$job.result 2>&1; echo "ended with $?" >>/run/$job.result) </dev/null >/dev/null 2>&1 &
done
while [ ! -s /run/acks ]; do sleep 0.1; done
`

// stopLoad ends both writers, fails if either had failed before, and prints the last acknowledged
// transaction and the number of fio's passes.
const stopLoad = `
if grep -q ended /run/commit.result; then cat /run/commit.result; exit 1; fi
touch /run/stop
pkill sqlite3
while ! grep -q ended /run/commit.result || ! grep -q ended /run/verify.result; do sleep 0.2; done
grep -q 'ended with 0' /run/verify.result || { cat /run/verify.result; exit 1; }
tail -n 1 /run/acks
head -n 1 /run/verify.result
umount /mnt
`

// checkTag is a shell function for a fresh guest. "check DEVICE MODE" prints one line about a disk
// of the workload: SHA-256 of the device before any other access, whether the journal needs a
// replay, and the database's answers: count, least and greatest transaction, number of wrong
// bodies, result of the integrity check. In MODE guest the file system must be clean without a
// replay; in others, after it.
const checkTag = `
fail() { echo "$1: $2"; cat /run/output; exit 1; }
check() {
	sum=$(sha256sum <$1)
	dumpe2fs -h $1 >/run/output 2>&1 || fail $1 dumpe2fs
	replay=clean
	grep -q 'features:.*needs_recovery' /run/output && replay=replay
	if [ $2 = guest ]; then
		[ $replay = clean ] || fail $1 "frozen, but its journal is not empty"
		fsck.ext4 -f -n $1 >/run/output 2>&1 || fail $1 "fsck of the frozen file system"
	else
		mount -t ext4 $1 /mnt && umount /mnt || fail $1 "mounting, which replays the journal"
		fsck.ext4 -f -n $1 >/run/output 2>&1 || fail $1 "fsck after replaying the journal"
	fi
	mount -t ext4 $1 /mnt
	answer=$(sqlite3 -separator ' ' /mnt/db "SELECT count(*), min(n), max(n), sum(body <> printf('%0120d', n)) FROM t; PRAGMA integrity_check;" 2>&1)
	fio --output=/run/output --name=check --filename=/mnt/area --size=4M --rw=read --bs=4k --verify=crc32c --verify_fatal=1 >/run/err 2>&1 || {
		cat /run/err >>/run/output; fail $1 "fio's area"; }
	umount /mnt
	echo $1 ${sum%% *} $replay $answer
}
`

// acknowledged returns the last transaction whose COMMIT has returned in the guest.
func (e *env) acknowledged(m *harness.Machine) int {
	e.Helper()
	n, err := strconv.Atoi(e.run(m, "tail -n 1 /run/acks"))
	e.must(err)
	return n
}

// tagContents is a fresh guest's report on one disk.
type tagContents struct {
	sha256 string
	replay bool // the journal was not empty
	last   int  // transaction
}

// parseContents parses a line of checkTag. It returns an error unless the database is sound and
// holds every transaction from 1 to the last.
func parseContents(line string) (c tagContents, err error) {
	f := strings.Fields(line)
	if len(f) != 8 {
		return c, fmt.Errorf("the check printed %q", line)
	}
	c.sha256, c.replay = f[1], f[2] == "replay"
	if c.last, err = strconv.Atoi(f[5]); err != nil {
		return c, err
	}
	if f[3] != f[5] || f[4] != "1" || f[6] != "0" || f[7] != "ok" {
		err = fmt.Errorf("%s transactions from %s to %s, %s of them with wrong content; integrity check: %s", f[3], f[4], f[5], f[6], f[7])
	}
	return c, err
}

// serveAll starts one back-end process for several disks and returns their sockets.
func (e *env) serveAll(names ...string) (*server, []string) {
	e.Helper()
	var sockets []string
	for _, name := range names {
		var info harness.Disk
		e.must(suite.store.JSON(e.ctx, &info, "info", name))
		sockets = append(sockets, info.Socket)
	}
	// The sockets are made in this order.
	b, err := harness.StartBackend(e.ctx, suite.store.Cmd(append([]string{"serve"}, names...)...),
		sockets[len(sockets)-1])
	e.must(err)
	return e.watch(b), sockets
}

// manyDisks returns QEMU arguments for more disks than the harness has hot-plug ports. All are on
// the root bus, so the guest names them in this order; disks behind ports would come out of order.
func manyDisks(sockets []string) (args []string) {
	for i, socket := range sockets {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=many%d,path=%s", i, socket),
			"-device", fmt.Sprintf(
				"vhost-user-blk-pci,chardev=many%d,num-queues=1,disable-legacy=on", i))
	}
	return args
}

// disksABoot is the number of tags that a fresh guest checks at once: vdb to vdz.
const disksABoot = 25

// attachAll creates a disk from every tag, attaches these to fresh guests, and returns the guests'
// reports.
func (e *env) attachAll(qemu harness.QEMU, disk string, tags []promotion) []tagContents {
	e.Helper()
	var all []tagContents
	for len(tags) > 0 {
		n := min(len(tags), disksABoot)
		all = append(all, e.attach(qemu, disk, tags[:n])...)
		tags = tags[n:]
	}
	return all
}

func (e *env) attach(qemu harness.QEMU, disk string, tags []promotion) []tagContents {
	e.Helper()
	root := e.disk("fresh-"+tags[0].name, "--from", imageGolden)
	names := []string{root}
	for _, t := range tags {
		names = append(names, e.disk("from-"+t.name, "--from", disk+"@"+t.name))
	}
	s, sockets := e.serveAll(names...)
	m := e.boot(harness.MachineOptions{Name: "fresh-" + tags[0].name, QEMU: qemu,
		Boot: harness.BootQuick, CPUs: 2, MemoryMiB: 768,
		Extra: append(manyDisks(sockets), "-no-reboot")})
	script := checkTag
	for i, t := range tags {
		script += fmt.Sprintf("check /dev/vd%c %s\n", 'b'+i, t.mode)
	}
	start := time.Now()
	lines := strings.Split(e.run(m, script), "\n")
	e.Logf("%d tags checked in %.0f s", len(tags), time.Since(start).Seconds())
	e.must(m.PowerOff(e.ctx))
	e.stopServer(s)
	if len(lines) != len(tags) {
		e.Fatalf("expected a line for each of %d tags, found:\n%s", len(tags),
			strings.Join(lines, "\n"))
	}
	var all []tagContents
	for i, line := range lines {
		c, err := parseContents(line)
		if err != nil {
			e.Errorf("%s@%s (quiesce %s): %v", disk, tags[i].name, tags[i].mode, err)
		}
		all = append(all, c)
	}
	for _, name := range names {
		e.cowblk("rm", "--yes", name)
	}
	return all
}

// agentPort returns QEMU arguments for the guest agent's virtio-serial port.
func agentPort(path string) []string {
	return []string{"-device", "virtio-serial-pci", "-chardev",
		"socket,id=qga,server=on,wait=off,path=" + path,
		"-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"}
}

// agentSocket returns the path of the guest agent's socket.
func (e *env) agentSocket() string { return filepath.Join(e.dir, "qga") }

// startAgent starts the guest agent in a guest without systemd.
const startAgent = `
set -e
modprobe virtio_console
for try in $(seq 100); do [ -c /dev/vport0p1 ] && break; sleep 0.1; done
mkdir -p /run/qga
qemu-ga --daemonize --method=virtio-serial --path=/dev/vport0p1 --pidfile=/run/qga.pid --statedir=/run/qga
`
