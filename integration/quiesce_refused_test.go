//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"cowblk/integration/harness"
)

// idleDomain is a domain without disks, with nothing to boot.
const idleDomain = `<domain type='qemu'><name>NAME</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>CHANNEL<memballoon model='none'/></devices></domain>`

const agentChannel = `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`

// libvirt refuses a freeze before it asks the guest. The promotion fails at once and leaves no
// quiesce record; the next promotion succeeds.
func TestQuiesceRefusedByLibvirt(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	name := e.disk("data", "--size", "64M")
	served := e.serve(name)
	daemon, err := harness.StartLibvirtd(e.ctx, e.dir)
	e.must(err)
	t.Cleanup(daemon.Kill)
	virsh := func(args ...string) {
		t.Helper()
		_, err := daemon.Virsh(e.ctx, args...)
		e.must(err)
	}
	define := func(domain, channel string) {
		t.Helper()
		virsh("define", e.write(domain+".xml", strings.NewReplacer("NAME", domain, "CHANNEL",
			channel).Replace(idleDomain)))
	}
	define("off", agentChannel)
	define("noagent", "")
	define("mute", agentChannel)
	virsh("start", "noagent")
	virsh("start", "mute")
	for domain, want := range map[string]string{"none": "no domain", "off": "not running",
		"noagent": "not configured", "mute": "not connected"} {
		began := time.Now()
		out, err := suite.store.Run(e.ctx, "promote", name, "--tag", "t", "--quiesce", "guest",
			"--libvirt", daemon.URI, "--domain", domain, "--timeout", "2m")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("domain %s: %s, %v", domain, out, err)
		}
		t.Logf("domain %s, after %s: %v", domain, time.Since(began).Round(time.Millisecond), err)
		e.checkNoQuiesceRecord(name)
	}
	e.cowblk("promote", name, "--tag", "plain")
	e.stopServer(served)
	if log := served.Output(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the daemon's log:\n%s", log)
	}
}
