//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"libvirt.org/go/libvirtxml"

	"cowblk/integration/harness"
)

// Promotions of a libvirt domain, frozen and paused through libvirt, which owns the monitor and the
// channel to the guest agent.
func TestPromoteLibvirt(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	n := e.countPromotions(2)
	r, sockets := e.workloadDisks("4K")
	root := e.name("root")
	var domain libvirtxml.Domain
	e.must(domain.Unmarshal(e.cowblk("xml", root, "--socket-path", sockets[0], "--domain", "--type",
		"qemu", "--memory", "768M", "--vcpus", "2")))
	for i, name := range []string{r.data, r.mark} {
		var disk libvirtxml.DomainDisk
		e.must(disk.Unmarshal(e.cowblk("xml", name, "--socket-path", sockets[i+1], "--disk",
			"--target", fmt.Sprintf("vd%c", 'b'+i), "--vcpus", "2")))
		domain.Devices.Disks = append(domain.Devices.Disks, disk)
	}
	console, err := harness.ListenPort(filepath.Join(e.dir, "console"), nil)
	e.must(err)
	t.Cleanup(console.Close)
	scripts := filepath.Join(e.dir, "agent")
	agent, err := harness.ListenAgent(scripts)
	e.must(err)
	t.Cleanup(agent.Close)
	domain.OS.BootDevices = nil
	domain.OS.Kernel, domain.OS.Initrd, domain.OS.Cmdline = suite.golden.Kernel, suite.golden.Quick,
		"console=ttyS0 panic=-1 quick=root"
	domain.OnReboot = "destroy"
	domain.Devices.Consoles = nil
	domain.Devices.Serials = []libvirtxml.DomainSerial{serialPort(0, console.Path),
		serialPort(1, scripts)}
	domain.Devices.Channels = []libvirtxml.DomainChannel{{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{
			Mode: "bind", Path: e.agentSocket()}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{
			Name: "org.qemu.guest_agent.0"}},
	}}
	text, err := domain.Marshal()
	e.must(err)

	daemon, err := harness.StartLibvirtd(e.ctx, e.dir)
	e.must(err)
	t.Cleanup(daemon.Kill)
	virsh := func(args ...string) string {
		t.Helper()
		out, err := daemon.Virsh(e.ctx, args...)
		e.must(err)
		return out
	}
	virsh("create", e.write("domain.xml", text))
	// The guest is a harness guest; only its QEMU was started by libvirt.
	r.Machine = &harness.Machine{Process: daemon.Process, Agent: agent, Console: console}
	_, _, err = r.Ready(e.ctx)
	e.must(err)
	e.run(r.Machine, startAgent)
	e.run(r.Machine, fmt.Sprintf(startLoad, "delete", "/dev/vdb", "/dev/vdc"))

	options := []string{"--libvirt", daemon.URI, "--domain", root, "--timeout", "60s"}
	tags := e.promoteAll(r, n, []quiesceMode{{"none", nil}, {"guest", options}, {"pause", options}},
		func(mode string) {
			t.Helper()
			if state := virsh("domstate", root); state != "running" {
				t.Fatalf("after a promotion with --quiesce %s the domain is %s", mode, state)
			}
		})
	// libvirt's own use of the agent and the monitor is not disturbed.
	virsh("domfsfreeze", root)
	virsh("domfsthaw", root)
	virsh("suspend", root)
	virsh("resume", root)

	r.powerOff = func() error {
		e.run(r.Machine, "sync")
		_, err := daemon.Virsh(e.ctx, "destroy", root)
		return err
	}
	copies, marks := e.copyTags(r, tags)
	e.checkTags(r, e.qemu(harness.Debian12), e.finish(r, tags), copies, marks)
}
