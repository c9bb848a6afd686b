package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

func TestAttachAndDetach(t *testing.T) {
	dir := storeWith(t, "16M", "a", "b", "c")
	q := startQEMU(t, dir, sharedMemory, rootPorts, nativePlug)
	expectFailure(t, dir, []string{"attach", "a", "--qmp", q.qmp}, "not served", "serve a")
	p := start(t, dir, nil, "serve", "a", "b", "c", "--queues", "4")
	dialControl(t, dir, "a")

	connected := func(disk string) bool {
		return strings.Contains(command(t, dir, "info", disk, "--json"), `"connected": true`)
	}
	out := command(t, dir, "attach", "a", "--qmp", q.qmp, "--queues", "2")
	if want := "disk a is attached: QEMU's device disk-a, at port0\n"; out != want {
		t.Errorf("%q, want %q", out, want)
	}
	if !connected("a") {
		t.Error("a has no front-end")
	}
	var queues int
	q.run("qom-get", map[string]string{"path": "/machine/peripheral/disk-a",
		"property": "num-queues"}, &queues)
	test.Equal(t, queues, 2, "queues")
	expectFailure(t, dir, []string{"attach", "a", "--qmp", q.qmp}, "connected to a QEMU already")
	expectFailure(t, dir, []string{"attach", "b", "--qmp", q.qmp, "--id", "disk-a"},
		`a device "disk-a" already`)
	expectFailure(t, dir, []string{"attach", "b", "--qmp", q.qmp, "--queues", "5"},
		"offers 4 queues")
	command(t, dir, "attach", "b", "--qmp", q.qmp, "--id", "second", "--bus", "port1")
	expectFailure(t, dir, []string{"attach", "c", "--qmp", q.qmp}, "no free PCIe root port",
		"port0 (vhost-user-blk-pci), port1 (vhost-user-blk-pci)", "-device pcie-root-port")

	command(t, dir, "detach", "a", "--qmp", q.qmp)
	test.Eventually(t, "a is free", func() bool { return !connected("a") })
	expectFailure(t, dir, []string{"detach", "a", "--qmp", q.qmp}, `no device "disk-a"`)
	expectFailure(t, dir, []string{"detach", "c", "--qmp", q.qmp, "--id", "port0"},
		"is a pcie-root-port")
	command(t, dir, "detach", "b", "--qmp", q.qmp, "--id", "second")
	q.clean()

	// QEMU refuses the device: the chardev is removed again.
	expectFailure(t, dir, []string{"attach", "a", "--qmp", q.qmp, "--bus", "nowhere"},
		"'nowhere' not found")
	q.clean()
	// QEMU cannot reach the socket: attach must not block QEMU, and so the guest.
	socket := filepath.Join(dir, "run", "a.sock")
	test.Must(t, os.Rename(socket, socket+"2"))
	expectFailure(t, dir, []string{"attach", "a", "--qmp", q.qmp}, "does not connect to "+socket,
		"--socket-group")
	test.Must(t, os.Rename(socket+"2", socket))
	q.clean()
	command(t, dir, "attach", "a", "--qmp", q.qmp)

	// Detach also works when no process serves the disk any more.
	p.end(t)
	command(t, dir, "detach", "a", "--qmp", q.qmp)
	q.clean()
	q.quit()
}

// With ACPI hot-plugging the guest must answer, but no guest runs.
func TestDetachWaitsForTheGuest(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	q := startQEMU(t, dir, sharedMemory, rootPorts)
	// The hooks hold QEMU's monitor; attach and detach use their connection.
	p := start(t, dir, nil, "serve", "a", "--qmp", q.qmp, "--promote-on", "RESET")
	_, events := dialControl(t, dir, "a")
	command(t, dir, "attach", "a", "--qmp", q.qmp)
	for range 2 {
		expectFailure(t, dir, []string{"detach", "a", "--qmp", q.qmp, "--timeout", "500ms"},
			"has not released device \"disk-a\"", "try again")
	}
	// A reset removes the device while detach waits.
	reset := make(chan struct{})
	go func() {
		defer close(reset)
		q.monitor.Run(t.Context(), "system_reset", nil, nil)
	}()
	command(t, dir, "detach", "a", "--qmp", q.qmp, "--timeout", waitTimeout.String())
	<-reset
	nextEvent(t, events, "COW_PROMOTED")
	q.clean()

	// A reset removes the device while nobody waits: the next detach finds only the chardev.
	command(t, dir, "attach", "a", "--qmp", q.qmp)
	expectFailure(t, dir, []string{"detach", "a", "--qmp", q.qmp, "--timeout", "100ms"},
		"try again")
	q.run("system_reset", nil, nil)
	command(t, dir, "detach", "a", "--qmp", q.qmp)
	q.clean()
	p.end(t)
	q.quit()
}

// QEMU would accept the device, but the guest's disk would not work.
func TestAttachNeedsSharedMemory(t *testing.T) {
	for name, args := range map[string][]string{
		"default": {"-machine", "q35", "-m", "64"},
		"private": {"-machine", "q35,memory-backend=mem", "-m", "64", "-object",
			"memory-backend-memfd,id=mem,size=64M,share=off"},
		"numa": {"-machine", "q35", "-m", "64", "-object",
			"memory-backend-memfd,id=one,size=32M,share=on",
			"-object", "memory-backend-ram,id=two,size=32M", "-numa", "node,memdev=one", "-numa",
			"node,memdev=two"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeWith(t, "16M", "a")
			q := startQEMU(t, dir, args, rootPorts)
			p := start(t, dir, nil, "serve", "a")
			dialControl(t, dir, "a")
			expectFailure(t, dir, []string{"attach", "a", "--qmp", q.qmp}, "is not shared",
				"share=on")
			q.clean()
			q.quit()
			p.end(t)
		})
	}
}

// The pc machine hot-plugs into its only bus.
func TestAttachToMachinePC(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	q := startQEMU(t, dir, []string{"-machine", "pc,memory-backend=mem", "-m", "64", "-object",
		"memory-backend-memfd,id=mem,size=64M,share=on"})
	p := start(t, dir, nil, "serve", "a")
	dialControl(t, dir, "a")
	command(t, dir, "attach", "a", "--qmp", q.qmp)
	q.quit()
	p.end(t)
}
