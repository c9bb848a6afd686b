//go:build integration

package integration

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/integration/harness"
	"cowblk/internal/test"
)

// smallMachine returns options of a machine that boots in a few seconds with the disk of s.
func smallMachine(s *server) harness.MachineOptions {
	return harness.MachineOptions{Boot: harness.BootInitramfs, CPUs: 2, MemoryMiB: 256,
		Disks: []string{s.Socket}}
}

// markedFile makes a raw file that starts with text and returns its path.
func (e *env) markedFile(text string) string {
	e.Helper()
	file := e.write("disk.raw", text+"\n")
	e.must(os.Truncate(file, 16<<20))
	return file
}

// readFirstLine returns the text that a guest reads from the start of its disk.
func (e *env) readFirstLine(m *harness.Machine, disk string) string {
	e.Helper()
	return e.run(m, "head -n 1 /dev/"+disk)
}

// QEMU's registration file names a program. Here it is this binary under another name, and its
// capabilities are those of the file.
func TestRegistration(t *testing.T) {
	text, err := os.ReadFile("50-cowblk.json")
	test.Must(t, err)
	var registered struct{ Description, Type, Binary string }
	test.Must(t, json.Unmarshal(text, &registered))
	program := filepath.Join(t.TempDir(), filepath.Base(registered.Binary))
	test.Must(t, os.Symlink(suite.store.Binary, program))
	out, err := exec.Command(program, "--print-capabilities").Output()
	test.Must(t, err)
	var capable struct {
		Type     string
		Features []string
	}
	if err := json.Unmarshal(out, &capable); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if capable.Type != "block" || registered.Type != capable.Type {
		t.Errorf("registered as type %q, reported by the program as %q; expected \"block\"",
			registered.Type, capable.Type)
	}
	if got := strings.Join(capable.Features, " "); got != "read-only blk-file" {
		t.Errorf("features %q; expected \"read-only blk-file\"", got)
	}

	e := newEnv(t)
	file, socket := e.markedFile("raw file"), filepath.Join(e.dir, "raw.sock")
	b, err := harness.StartBackend(e.ctx, exec.Command(program, "--blk-file", file, "--socket-path",
		socket), socket)
	e.must(err)
	s := e.watch(b)
	m := e.boot(smallMachine(s))
	if got := e.readFirstLine(m, "vda"); got != "raw file" {
		t.Errorf("the guest reads %q; the file starts with \"raw file\"", got)
	}
	e.run(m, "echo written | dd of=/dev/vda conv=fsync")
	e.must(m.PowerOff(e.ctx))
	e.stopServer(s)
	if now, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(now), "written\n") {
		t.Errorf("the file starts with %.20q (%v); the guest wrote \"written\"", now, err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	file, socket := e.markedFile("untouched"), filepath.Join(e.dir, "ro.sock")
	b, err := harness.StartBackend(e.ctx, suite.store.Cmd("serve", "--blk-file", file,
		"--read-only", "--socket-path", socket), socket)
	e.must(err)
	s := e.watch(b)
	m := e.boot(smallMachine(s))
	if ro := e.run(m, "cat /sys/block/vda/ro"); ro != "1" {
		t.Errorf("the guest's disk has ro=%s; expected 1", ro)
	}
	if out := e.run(m, "echo x | dd of=/dev/vda conv=fsync 2>&1 && echo WRITTEN; true"); strings.Contains(out, "WRITTEN") {
		t.Errorf("a write to a read-only disk succeeded: %s", out)
	}
	test.Equal(t, e.readFirstLine(m, "vda"), "untouched", "the guest reads")
	e.must(m.PowerOff(e.ctx))
	e.stopServer(s)
}

// listen makes a listening socket for a back-end to inherit, and returns its file.
func (e *env) listen(socket string) *os.File {
	e.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	e.must(err)
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	e.must(err)
	e.must(l.Close())
	e.Cleanup(func() { f.Close() })
	return f
}

func TestInheritedSocket(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	socket := filepath.Join(e.dir, "fd.sock")
	cmd := suite.store.Cmd("serve", e.disk("disk", "--size", "16M"), "--fd", "3")
	cmd.ExtraFiles = []*os.File{e.listen(socket)}
	b, err := harness.StartBackend(e.ctx, cmd, socket)
	e.must(err)
	s := e.watch(b)
	for number := range 2 {
		m := e.boot(smallMachine(s))
		e.run(m, counter(number))
		e.must(m.PowerOff(e.ctx))
	}
	e.stopServer(s)
}

// systemd passes the socket; the back-end notifies systemd when it is ready and when it stops.
func TestSystemdActivation(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	name, socket := e.disk("disk", "--size", "16M"), filepath.Join(e.dir, "unit.sock")
	notify, err := net.ListenUnixgram("unixgram",
		&net.UnixAddr{Name: filepath.Join(e.dir, "notify"), Net: "unixgram"})
	e.must(err)
	t.Cleanup(func() { notify.Close() })
	expect := func(want string) {
		t.Helper()
		e.must(notify.SetReadDeadline(time.Now().Add(time.Minute)))
		buf := make([]byte, 4096)
		n, err := notify.Read(buf)
		e.must(err)
		if got := string(buf[:n]); got != want {
			t.Fatalf("notification to systemd: %q, expected %q", got, want)
		}
	}
	serve := suite.store.Cmd("serve", name)
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`},
		serve.Args...)...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES="+name,
		"NOTIFY_SOCKET="+notify.LocalAddr().String())
	cmd.ExtraFiles = []*os.File{e.listen(socket)}
	b, err := harness.StartBackend(e.ctx, cmd, socket)
	e.must(err)
	s := e.watch(b)
	expect("FDSTORE=1\nFDNAME=.control") // the disk's socket belongs to the unit
	expect("READY=1")
	m := e.boot(smallMachine(s))
	e.run(m, counter(0))
	e.must(m.PowerOff(e.ctx))
	e.stopServer(s)
	expect("STOPPING=1")
}

// Two disks in one process. The QEMU arguments that cowblk prints for them are used unchanged.
func TestPrintedArguments(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	names := []string{e.disk("one", "--size", "16M"), e.disk("two", "--size", "32M")}
	var info harness.Disk
	e.must(suite.store.JSON(e.ctx, &info, "info", names[1]))
	b, err := harness.StartBackend(e.ctx, suite.store.Cmd("serve", names[0], names[1]), info.Socket)
	e.must(err)
	s := e.watch(b)
	printed := e.cowblk("qemu-args", names[0], names[1], "--memory", "256M", "--vcpus", "2")
	m := e.boot(harness.MachineOptions{Boot: harness.BootInitramfs,
		Arguments: strings.Fields(printed)})
	if got := e.run(m, "cat /sys/block/vda/size /sys/block/vdb/size"); got != "32768\n65536" {
		t.Errorf("the guest's disks have %q sectors; expected 32768 and 65536", got)
	}
	if got := e.run(m, "cat /sys/block/vda/serial"); !strings.HasPrefix(names[0], got) ||
		got == "" {
		t.Errorf("the first disk's serial number is %q; expected the start of %q", got, names[0])
	}
	e.run(m, counter(0))
	e.must(m.PowerOff(e.ctx))
	e.stopServer(s)
}
