package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/internal/test"
)

// qemuEnv names a QEMU binary other than the installed one.
const qemuEnv = "COWBLK_TEST_QEMU"

// emulator is a QEMU without a guest system, its processors stopped. It has two monitors: one for
// cowblk and one for the test.
type emulator struct {
	t       *testing.T
	cmd     *exec.Cmd
	qmp     string // address for cowblk
	monitor *qmp.Monitor
}

// Shared memory and two root ports. Without ACPI, hot-plugging needs no guest system as long as a
// port is off.
var (
	sharedMemory = []string{"-machine", "q35,memory-backend=mem", "-m", "64", "-object",
		"memory-backend-memfd,id=mem,size=64M,share=on"}
	rootPorts = []string{"-device", "pcie-root-port,id=port0,chassis=1", "-device",
		"pcie-root-port,id=port1,chassis=2"}
	nativePlug = []string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"}
)

// startQEMU runs QEMU with its sockets in dir until the test ends.
func startQEMU(t *testing.T, dir string, args ...[]string) *emulator {
	t.Helper()
	binary := os.Getenv(qemuEnv)
	if binary == "" {
		binary = "qemu-system-x86_64"
	}
	theirs, ours := filepath.Join(dir, "qmp"), filepath.Join(dir, "test.qmp")
	all := []string{"-S", "-accel", "tcg", "-nodefaults", "-display", "none",
		"-qmp", "unix:" + theirs + ",server=on,wait=off", "-qmp",
		"unix:" + ours + ",server=on,wait=off"}
	for _, more := range args {
		all = append(all, more...)
	}
	e := &emulator{t: t, cmd: exec.Command(binary, all...), qmp: "unix:" + theirs}
	e.cmd.Stderr = os.Stderr
	test.Must(t, e.cmd.Start())
	e.monitor = qmp.NewMonitor(qmp.MonitorOptions{Address: qmp.Address{Path: ours},
		Timeout: waitTimeout})
	t.Cleanup(func() {
		e.monitor.Close()
		if e.cmd.ProcessState == nil {
			e.cmd.Process.Kill()
			e.cmd.Wait()
		}
	})
	return e
}

// waitTimeout bounds every wait in these tests. Reaching it is a failure.
const waitTimeout = 30 * time.Second

func (e *emulator) run(command string, args, out any) {
	e.t.Helper()
	test.Must(e.t, e.monitor.Run(context.Background(), command, args, out))
}

// quit ends QEMU in order.
func (e *emulator) quit() {
	e.t.Helper()
	e.run("quit", nil, nil)
	e.monitor.Close() // or it would connect to the next QEMU
	test.Must(e.t, e.cmd.Wait())
}

// clean checks that QEMU has no device or chardev of cowblk.
func (e *emulator) clean() {
	e.t.Helper()
	var devices, chardevs json.RawMessage
	e.run("qom-list", map[string]string{"path": "/machine/peripheral"}, &devices)
	e.run("query-chardev", nil, &chardevs)
	if bytes.Contains(devices, []byte("vhost-user")) || bytes.Contains(chardevs, []byte("sock-")) {
		e.t.Errorf("left in QEMU: %s %s", devices, chardevs)
	}
}

// expectFailure runs cowblk, which must fail with a message that contains all words.
func expectFailure(t *testing.T, dir string, args []string, words ...string) {
	t.Helper()
	var errs bytes.Buffer
	a := &app{
		in: strings.NewReader(""), out: &errs, err: &errs, getenv: func(string) string {
			return ""
		},
		terminal: func(any) bool { return false }, kvm: func() bool { return false },
	}
	if code := run(append([]string{"--store", dir}, args...), a); code == exitOK {
		t.Errorf("cowblk %v went well", args)
	}
	for _, w := range words {
		if !strings.Contains(errs.String(), w) {
			t.Errorf("cowblk %v does not say %q:\n%s", args, w, errs.String())
		}
	}
}

// dialControl waits for the control socket of disk and returns a client and its events.
func dialControl(t *testing.T, dir, disk string) (*control.Client, <-chan goqmp.Event) {
	t.Helper()
	dial(t, filepath.Join(dir, "run", disk+".sock")).Close()
	c, err := control.Dial(filepath.Join(dir, "run", disk+".ctl"), waitTimeout)
	test.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	events, err := c.Events(ctx)
	test.Must(t, err)
	test.Eventually(t, "the daemon has seen the test hang up", func() bool {
		var disks []daemon.DiskInfo
		test.Must(t, c.Run(ctx, "query-cow-disks", nil, &disks))
		return !slices.ContainsFunc(disks, func(d daemon.DiskInfo) bool { return d.Connected })
	})
	return c, events
}

// nextEvent waits for an event of this name.
func nextEvent(t *testing.T, events <-chan goqmp.Event, name string) map[string]any {
	t.Helper()
	for limit := time.After(waitTimeout); ; {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the daemon went away; %s was expected", name)
			}
			if e.Event == name {
				return e.Data
			}
		case <-limit:
			t.Fatalf("no %s", name)
		}
	}
}

// changeSettings runs cow-set.
func changeSettings(t *testing.T, c *control.Client, args string) (s daemon.Settings) {
	t.Helper()
	test.Must(t, c.Run(context.Background(), "cow-set", json.RawMessage(args), &s))
	return s
}
