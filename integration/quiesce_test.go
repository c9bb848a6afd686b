//go:build integration

package integration

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cowblk/integration/harness"
)

// A running guest is paused for the promotion and continued after it; a paused guest stays paused.
func TestPromotePaused(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	n := e.countPromotions(3)
	qemu := e.qemu(harness.Debian12Backports)
	monitor := filepath.Join(e.dir, "second.qmp") // a QEMU monitor serves one client at a time
	r := e.startWorkload(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick,
		Extra: []string{"-qmp", "unix:" + monitor + ",server=on,wait=off"}}, "wal", "4K")
	options := []string{"--qmp", "unix:" + monitor}
	tags := e.promoteAll(r, n, []quiesceMode{{"pause", options}}, func(string) {
		t.Helper()
		e.must(r.Event(e.ctx, "STOP", nil))
		e.must(r.Event(e.ctx, "RESUME", nil))
	})

	still := promotion{name: "still", mode: "pause", acknowledged: e.acknowledged(r.Machine)}
	e.must(r.Command("stop", nil))
	e.cowblk("promote", r.data, r.mark, "--tag", still.name, "--quiesce", "pause", options[0],
		options[1])
	var state struct{ Status string }
	e.must(r.Monitor.Run("query-status", nil, &state))
	if state.Status != "paused" {
		t.Errorf("the guest was paused before the promotion, and is %s after it", state.Status)
	}
	e.must(r.Command("cont", nil))
	tags = append(tags, still)
	copies, marks := e.copyTags(r, tags)
	e.checkTags(r, qemu, e.finish(r, tags), copies, marks)
}

// agentProxy is a proxy between cowblk and the guest agent. It delays the agent's answer to the
// first freeze, so that the guest stays frozen until the test releases it.
type agentProxy struct {
	listener net.Listener
	agent    string        // QEMU's listening socket
	frozen   chan struct{} // closed when the agent's answer has arrived
	release  chan struct{} // closed by the test, to forward the answer

	once sync.Once
	wg   sync.WaitGroup
}

func (e *env) delayAgent(agent string) (h *agentProxy, address string) {
	e.Helper()
	path := filepath.Join(e.dir, "proxy-qga")
	l, err := net.Listen("unix", path)
	e.must(err)
	h = &agentProxy{listener: l, agent: agent, frozen: make(chan struct{}),
		release: make(chan struct{})}
	h.wg.Go(h.accept)
	e.Cleanup(func() { l.Close(); h.wg.Wait() })
	return h, "unix:" + path
}

func (h *agentProxy) accept() {
	for {
		down, err := h.listener.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("unix", h.agent)
		if err != nil {
			down.Close()
			continue
		}
		// Closed when the client has disconnected. QEMU must see the disconnection before it
		// accepts the next client.
		gone := make(chan struct{})
		freezeRequested := make(chan struct{}, 1)
		h.wg.Go(func() {
			defer func() { close(gone); up.Close(); down.Close() }()
			copyUntil(up, down, func(b []byte) {
				if bytes.Contains(b, []byte("guest-fsfreeze-freeze")) {
					freezeRequested <- struct{}{}
				}
			})
		})
		h.wg.Go(func() {
			defer down.Close()
			copyUntil(down, up, func([]byte) {
				select {
				case <-freezeRequested:
					h.once.Do(func() { close(h.frozen) })
					select {
					case <-h.release:
					case <-gone:
					}
				default:
				}
			})
		})
	}
}

// copyUntil copies until either end fails, and passes each piece to show before it writes it.
func copyUntil(to, from net.Conn, show func([]byte)) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		show(buf[:n])
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Whichever process is killed while the guest is frozen, the guest is thawed: by the daemon, by the
// command that requested the freeze, or, if both are dead, by the next daemon.
func TestKilledWhileFrozen(t *testing.T) {
	for _, c := range []struct {
		name            string
		qemu            string
		daemon, command bool // which are killed
	}{
		{"daemon", harness.Debian12, true, false},
		{"command", harness.Debian13, false, true},
		{"both", harness.DebianUnstable, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			root, data := e.serve(e.disk("root", "--from", imageGolden)), e.disk("data", "--size",
				"64M")
			daemon := e.serve(data)
			m := e.boot(harness.MachineOptions{QEMU: e.qemu(c.qemu), Boot: harness.BootQuick,
				CPUs: 2, MemoryMiB: 512,
				Disks: []string{root.Socket, daemon.Socket}, Extra: agentPort(e.agentSocket())})
			e.run(m, startAgent+
				"mkfs.ext4 -q -F /dev/vdb && mount -t ext4 /dev/vdb /mnt && echo before >/mnt/written && sync")

			proxy, address := e.delayAgent(e.agentSocket())
			command, err := harness.StartProcess("cowblk promote", suite.store.Cmd("promote", data,
				"--tag", "during", "--quiesce", "guest", "--agent", address, "--timeout", "60s"))
			e.must(err)
			t.Cleanup(command.Kill)
			select {
			case <-proxy.frozen:
			case <-command.Done():
				t.Fatalf("cowblk promote ended before the guest was frozen:\n%s", command.Output())
			case <-e.ctx.Done():
				t.Fatalf("the guest was not frozen: %v", e.ctx.Err())
			}
			// Writers block in the kernel's mnt_want_write.
			e.run(m, `
				for fs in /mnt /root; do (echo during >$fs/during; echo $fs >>/run/written) </dev/null >/dev/null 2>&1 & writers="$writers $!"; done
				for pid in $writers; do
					until [ -e /run/written ] || grep -q want_write /proc/$pid/stack; do sleep 0.1; done
				done
				if [ -e /run/written ]; then echo "not frozen:"; cat /run/written; exit 1; fi`)
			if c.daemon {
				daemon.stopping.Store(true)
				daemon.Kill()
			}
			if c.command {
				command.Kill()
			}
			if c.daemon {
				daemon = e.serve(data)
			} else {
				close(proxy.release)
			}
			e.run(m, `while [ "$(wc -l 2>/dev/null </run/written)" != 2 ]; do sleep 0.1; done; sync; [ "$(cat /mnt/written /mnt/during)" = "before
during" ]`)
			if !c.command {
				if err := command.Wait(e.ctx); err == nil || !strings.Contains(err.Error(),
					"the daemon ended") {
					t.Errorf("cowblk promote, whose daemon was killed, ended with: %v", err)
				}
				t.Logf("output of cowblk promote: %s", command.Output())
			}
			// A killed daemon has not promoted: the promotion follows the freeze. A live daemon
			// whose client is gone may have done so or not.
			layers := e.layers(data)
			if layers > 2 || c.daemon && layers != 1 {
				t.Errorf("the disk has %d layers after the failed promotion", layers)
			}
			// The state is as before: the same promotion now succeeds.
			if c.daemon {
				close(proxy.release)
			}
			e.cowblk("promote", data, "--tag", "again", "--quiesce", "guest", "--agent", address,
				"--timeout", "60s")
			if now := e.layers(data); now != layers+1 {
				t.Errorf("the disk had %d layers before the next promotion, and has %d after it",
					layers, now)
			}
			e.run(m, "echo after >/mnt/after && sync")
			e.must(m.PowerOff(e.ctx))
			e.stopServer(daemon)
			e.checkNoQuiesceRecord(data)
		})
	}
}

// layers returns the number of layers of a disk.
func (e *env) layers(disk string) int {
	e.Helper()
	var info harness.Disk
	e.must(suite.store.JSON(e.ctx, &info, "info", disk))
	return len(info.Usage)
}

// checkNoQuiesceRecord fails the test if the store still has a quiesce record of the disk: the next
// daemon would thaw a guest that is not frozen.
func (e *env) checkNoQuiesceRecord(disk string) {
	e.Helper()
	notes, err := filepath.Glob(filepath.Join(suite.store.Dir, "disks", disk, "quiesced*"))
	e.must(err)
	if len(notes) > 0 {
		e.Errorf("left behind: %v", notes)
	}
}
