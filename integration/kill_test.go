//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/integration/harness"
)

// TestKilledUnderFio kills killsUsually times on one QEMU; killsEnv sets another number, on every
// QEMU.
const (
	killsEnv     = "COWBLK_KILLS"
	killsUsually = 6
)

// killJobs is a load that detects every error: four jobs write to files of their own on /dev/vdb,
// past the guest's cache, and read their data back before any flush; a fifth process makes and
// removes files all the time.
const killJobs = `
set -e
mkfs.ext4 -q -F /dev/vdb
mount -t ext4 /dev/vdb /mnt
cat >/run/kill.fio <<JOBS
[global]
directory=/mnt
direct=1
ioengine=libaio
iodepth=16
size=12M
rw=randwrite
bssplit=512/10:4k/50:16k/20:64k/15:256k/5
fsync=100
randrepeat=0
verify=crc32c
verify_fatal=1
verify_backlog=64
[job1]
[job2]
[job3]
[job4]
JOBS
cat >/run/fio <<'SCRIPT'
passes=0
while [ ! -e /run/stop ]; do
	fio --output=/run/kill.out /run/kill.fio >/run/kill.err 2>&1 || { cat /run/kill.err; tail -n 40 /run/kill.out; exit 1; }
	passes=$((passes + 1))
done
echo "$passes passes of fio"
SCRIPT
cat >/run/files <<'SCRIPT'
set -e
n=0
while [ ! -e /run/stop ]; do
	mkdir /mnt/dir
	for i in $(seq 50); do echo "$n $i" >/mnt/dir/$i; done
	[ "$(cat /mnt/dir/* | wc -l)" = 50 ]
	rm -r /mnt/dir
	n=$((n + 1))
done
echo "$n directories"
SCRIPT
for job in fio files; do
	(set +e; sh /run/$job >/run/$job.result 2>&1; echo "ended with $?" >>/run/$job.result) </dev/null >/dev/null 2>&1 &
done
`

// killEnd stops the load and fails if the load, the kernel or fsck reported an error.
const killEnd = `
touch /run/stop
while ! grep -q ended /run/fio.result || ! grep -q ended /run/files.result; do sleep 0.2; done
umount /mnt || exit 1
for job in fio files; do
	grep -q 'ended with 0' /run/$job.result || { cat /run/$job.result; dmesg | tail -n 30; exit 1; }
	head -n 1 /run/$job.result
done
if dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|vdb.*(error|timeout)|JBD2.*(error|abort)'; then exit 1; fi
fsck.ext4 -f -n /dev/vdb >/run/fsck 2>&1 || { cat /run/fsck; exit 1; }
tail -n 1 /run/fsck
`

// waitRequests waits until the server of a disk has completed n requests.
func (e *env) waitRequests(disk string, n uint64) {
	e.Helper()
	var last error
	for e.ctx.Err() == nil {
		var stats []struct {
			Reads  uint64 `json:"rd_operations"`
			Writes uint64 `json:"wr_operations"`
		}
		c, err := control.Dial(filepath.Join(suite.store.Dir, "run", disk+".ctl"), time.Second)
		if err == nil {
			ctx, cancel := context.WithTimeout(e.ctx, 10*time.Second)
			err = c.Run(ctx, "query-cow-stats", map[string]string{"disk": disk}, &stats)
			cancel()
		}
		if last = err; err == nil && len(stats) == 1 && stats[0].Reads+stats[0].Writes >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	e.Fatalf("the guest makes no requests: %v, %v", context.Cause(e.ctx), last)
}

// The back-end is killed at random moments, some of them during a promotion, and started again,
// while the guest works. The guest sees no error.
func TestKilledUnderFio(t *testing.T) {
	kills, all := killsUsually, os.Getenv(killsEnv)
	names := onQEMUs(harness.Debian13)
	if all != "" {
		names = everyQEMU()
	}
	for _, name := range names {
		t.Run("QEMU of "+name, func(t *testing.T) {
			kills := kills
			if all == "" {
				t.Parallel()
			}
			e := newEnv(t)
			qemu := e.qemu(name)
			if all != "" {
				var err error
				kills, err = strconv.Atoi(all)
				e.must(err)
				ctx, cancel := context.WithTimeout(context.Background(),
					waitLimit+time.Duration(kills)*10*time.Second)
				e.ctx, e.stop = context.WithCancelCause(ctx)
				e.Cleanup(cancel)
			}
			root, data := e.serve(e.disk("root", "--from", imageGolden)), e.disk("data", "--size",
				"1G")
			s := e.serve(data)
			m := e.boot(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick, CPUs: 4,
				MemoryMiB: 768,
				Disks:     []string{root.Socket, s.Socket}, ReconnectMS: 50})
			e.run(m, killJobs)
			promotions, promoted := 0, 0
			for i := range kills {
				e.waitRequests(data, 100)
				time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
				var promotion *harness.Process
				if i%3 == 2 {
					var err error
					promotion, err = harness.StartProcess("promote", suite.store.Cmd("promote",
						data, "--tag", fmt.Sprint("t", i)))
					e.must(err)
					promotions++
					time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
				}
				s.stopping.Store(true)
				s.Kill()
				if promotion != nil && promotion.Wait(e.ctx) == nil {
					promoted++
				}
				s = e.serve(data)
			}
			e.waitRequests(data, 100)
			output := e.run(m, killEnd)
			var info harness.Disk
			e.must(suite.store.JSON(e.ctx, &info, "info", data))
			t.Logf("%d kills, %d of them after the start of a promotion, of which %d were reported; %d layers; output of the guest: %s",
				kills, promotions, promoted, len(info.Usage), strings.ReplaceAll(output, "\n",
					"; "))
			e.must(m.PowerOff(e.ctx))
			e.stopServer(s)
		})
	}
}
