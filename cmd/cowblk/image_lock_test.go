package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// storageDaemon runs qemu-storage-daemon with an NBD export of one image, until the returned
// function is called.
func storageDaemon(t *testing.T, dir, format, file string, writable bool) (stop func()) {
	t.Helper()
	ready := filepath.Join(dir, "qsd.pid")
	os.Remove(ready)
	export := map[bool]string{true: "on", false: "off"}[writable]
	cmd := exec.Command("qemu-storage-daemon", "--pidfile", ready,
		"--blockdev", "driver=file,node-name=f,filename="+file+",auto-read-only=on", "--blockdev",
		"driver="+format+",node-name=n,file=f,read-only="+map[bool]string{true: "off",
			false: "on"}[writable],
		"--nbd-server", "addr.type=unix,addr.path="+filepath.Join(dir, "nbd"), "--export",
		"type=nbd,id=e,node-name=n,writable="+export)
	cmd.Stderr = os.Stderr
	test.Must(t, cmd.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	test.Eventually(t, "qemu-storage-daemon to be ready",
		func() bool { _, err := os.Stat(ready); return err == nil })
	return stop
}

// Files that a QEMU has open for writing cannot be imported, served or used as a base. Files that
// it only reads can.
func TestQEMUsImageLocks(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-storage-daemon", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: qemu-utils, qemu-system-x86); make deps installs it", tool)
		}
	}
	s := newScript(t)
	file := func(name string) string { return filepath.Join(s.dir, name) }
	sh := func(line string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", line)
		cmd.Dir = s.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	sh("truncate -s 1M raw; qemu-img create -q -f qcow2 a.qcow2 1M; qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2")
	// outcome returns the exit code of a command and its output.
	outcome := func(args ...string) (int, string) {
		var out, errOut bytes.Buffer
		code := run(args, s.app(&out, &errOut))
		return code, errOut.String()
	}
	refused := func(args ...string) {
		t.Helper()
		if code, text := outcome(args...); code != exitInUse || !strings.Contains(text, "qemu-") ||
			!strings.Contains(text, "(process ") {
			t.Errorf("cowblk %q: exit %d, %s", args, code, text)
		}
	}
	accepted := func(args ...string) {
		t.Helper()
		if code, text := outcome(args...); code != exitOK {
			t.Errorf("cowblk %q: exit %d, %s", args, code, text)
		}
	}
	blkFile := func(name string) []string {
		return []string{"serve", "--blk-file", file(name), "--socket-path", file("s")}
	}

	stop := storageDaemon(t, s.dir, "raw", file("raw"), true)
	refused("import", file("raw"), "i1")
	refused("create", "d1", "--base", file("raw"))
	refused(blkFile("raw")...)
	refused(append(blkFile("raw"), "--read-only")...)
	accepted("import", "--force-share", file("raw"), "i2")
	stop()
	accepted("import", file("raw"), "i1")
	accepted("create", "d1", "--base", file("raw"))

	stop = storageDaemon(t, s.dir, "qcow2", file("a.qcow2"), true)
	refused("import", file("a.qcow2"), "i3")
	refused("import", "--backing", file("top.qcow2"), "i3")
	stop()
	stop = storageDaemon(t, s.dir, "qcow2", file("a.qcow2"), false)
	accepted("import", file("a.qcow2"), "i3")
	accepted("import", "--backing", file("top.qcow2"), "i4")
	stop()

	// An open disk locks its base: QEMU may read it but not write to it.
	open, err := s.store().OpenDisk(t.Context(), "d1", store.OpenOptions{})
	test.Must(t, err)
	err = exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", file("raw")).Run()
	if err == nil {
		t.Error("QEMU writes to the base of an open disk")
	}
	if err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "raw", file("raw"),
		file("copy")).Run(); err != nil {
		t.Errorf("QEMU does not read the base of an open disk: %v", err)
	}
	test.Must(t, open.Close())
	sh("qemu-io -f raw -c 'write 0 512' raw")

	// A complete QEMU with the image as a disk.
	e := startQEMU(t, s.dir, sharedMemory, []string{"-drive", "if=none,id=d,format=qcow2,file=" +
		file("a.qcow2"), "-device", "virtio-blk-pci,drive=d"})
	e.run("query-status", nil, nil) // QEMU has opened its disks when its monitor answers
	refused("import", file("a.qcow2"), "i5")
	e.quit()
	accepted("import", file("a.qcow2"), "i5")
}
