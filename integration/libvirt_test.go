//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"cowblk/integration/harness"
)

// validate runs libvirt's schema check on a document.
func (e *env) validate(file string) {
	e.Helper()
	if out, err := exec.Command("virt-xml-validate", file).CombinedOutput(); err != nil {
		e.Fatalf("virt-xml-validate %s: %v\n%s", file, err, out)
	}
}

// write stores text in the test's directory and returns the path.
func (e *env) write(name, text string) string {
	e.Helper()
	file := filepath.Join(e.dir, name)
	e.must(os.WriteFile(file, []byte(text), 0o600))
	return file
}

// serialPort returns a port of a domain that connects to a harness port.
func serialPort(number uint, path string) libvirtxml.DomainSerial {
	return libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{
			Mode: "connect", Path: path}},
		Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: &number},
	}
}

// domain writes a file with the printed domain plus the test's additions: a kernel and the
// harness's ports.
func (e *env) domain(printed string) (file string, console *harness.Port, agent *harness.Agent) {
	e.Helper()
	var domain libvirtxml.Domain
	e.must(domain.Unmarshal(printed))
	console, err := harness.ListenPort(filepath.Join(e.dir, "console"), nil)
	e.must(err)
	e.Cleanup(console.Close)
	agent, err = harness.ListenAgent(filepath.Join(e.dir, "agent"))
	e.must(err)
	e.Cleanup(agent.Close)
	domain.OS.BootDevices = nil
	domain.OS.Kernel, domain.OS.Initrd, domain.OS.Cmdline = suite.golden.Kernel, suite.golden.Quick,
		"console=ttyS0 panic=-1"
	domain.Devices.Consoles = nil
	domain.Devices.Serials = []libvirtxml.DomainSerial{serialPort(0, console.Path),
		serialPort(1, filepath.Join(e.dir, "agent"))}
	text, err := domain.Marshal()
	e.must(err)
	return e.write("domain.xml", text), console, agent
}

// The domain that cowblk prints is defined and started, loses its disk, gets it back, and is
// destroyed.
func TestLibvirt(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	name := e.disk("disk", "--size", "64M")
	s := e.serve(name)
	text := e.cowblk("xml", name, "--socket-path", s.Socket, "--domain", "--type", "qemu",
		"--memory", "256M", "--vcpus", "2")
	e.validate(e.write("printed.xml", text))
	e.validate(e.write("short.xml", e.cowblk("xml", name)))
	file, console, agent := e.domain(text)
	e.validate(file)

	daemon, err := harness.StartLibvirtd(e.ctx, e.dir)
	e.must(err)
	t.Cleanup(daemon.Kill)
	virsh := func(args ...string) string {
		t.Helper()
		out, err := daemon.Virsh(e.ctx, args...)
		e.must(err)
		return out
	}
	run := func(script string) string {
		t.Helper()
		out, err := agent.Run(e.ctx, script)
		if err != nil {
			t.Fatalf("%v\n--- console\n%s", err, console.Tail())
		}
		return out
	}
	virsh("define", file)
	for round := range 2 {
		virsh("start", name)
		if _, err := agent.Ready(e.ctx); err != nil {
			t.Fatalf("%v\n--- console\n%s", err, console.Tail())
		}
		run(counter(2 * round))
		disk := e.write("disk.xml", e.cowblk("xml", name, "--socket-path", s.Socket, "--disk",
			"--vcpus", "2"))
		virsh("detach-device", name, disk, "--live")
		e.until("the guest has no disk", func() bool { return run("ls /sys/block") == "" })
		if list := virsh("domblklist", name); strings.Contains(list, s.Socket) {
			t.Errorf("libvirt lists the disk after it was detached:\n%s", list)
		}
		virsh("attach-device", name, disk, "--live")
		run(counter(2*round + 1))
		virsh("destroy", name)
	}
	virsh("undefine", name)
	e.stopServer(s)
}

// until polls for a state that has no event.
func (e *env) until(what string, done func() bool) {
	e.Helper()
	for !done() {
		select {
		case <-e.ctx.Done():
			e.Fatalf("waiting until %s: %v", what, e.ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
