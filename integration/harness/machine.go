package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// BootFrom says how a machine finds its system.
type BootFrom int

// The ways to boot, quickest first. All but BootInitramfs run from the first disk.
const (
	BootInitramfs BootFrom = iota // a shell in the initramfs, no disk needed
	BootQuick                     // the golden root without systemd: every tool in about 6 s
	BootDirect                    // -kernel, Debian's initramfs, systemd
	BootBIOS                      // SeaBIOS, extlinux, systemd
	BootUEFI                      // OVMF, systemd-boot, systemd
)

// MachineOptions describes one QEMU process.
type MachineOptions struct {
	Name   string // for messages and file names; "guest" by default
	Dir    string // an existing folder for its sockets; the path must be short (UNIX sockets)
	QEMU   QEMU   // InstalledQEMU by default
	Golden Golden // what to boot
	Boot   BootFrom

	CPUs      int // 1 by default
	MemoryMiB int // 512 by default

	// Disks are vhost-user-blk sockets. The first is vda in the guest; the QEMU
	// devices are disk0, disk1, …, each behind a hot-plug port of that index.
	Disks  []string
	Queues int // per disk; as many as CPUs by default
	// QueueSize is the property queue-size of each disk by index, in descriptors;
	// 0 or missing: QEMU's default, 128.
	QueueSize []int
	// ReconnectMS is how often QEMU tries to reach a back-end that has gone; 1,000
	// by default. See QEMU.Reconnect.
	ReconnectMS int

	// Arguments replaces what the harness writes for processors, memory and
	// disks with arguments that somebody else printed.
	Arguments []string
	Extra     []string // appended to QEMU's arguments
}

// Machine is a running QEMU and the harness's ends of its ports. The embedded
// process, agent and monitor may be used directly.
type Machine struct {
	*Process
	*Agent
	*Monitor
	Console *Port

	o       MachineOptions
	started time.Time
}

// defaults fills in what the caller left open.
func (o MachineOptions) defaults() MachineOptions {
	if o.Name == "" {
		o.Name = "guest"
	}
	if o.QEMU.Program == "" {
		o.QEMU = QEMU{Debian: Debian12, Program: InstalledQEMU}
	}
	o.CPUs = max(o.CPUs, 1)
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 512
	}
	if o.Queues == 0 {
		o.Queues = o.CPUs
	}
	if o.ReconnectMS == 0 {
		o.ReconnectMS = 1000
	}
	return o
}

// hotPlugPorts is how many PCIe ports a machine has for disks.
const hotPlugPorts = 4

// arguments of QEMU except those for the harness's own ports.
func (o MachineOptions) arguments() ([]string, error) {
	// Emulation: a stock kernel must run wherever the tests do. What needs no
	// speed takes its processors in turn, which cannot run into ErrEmulator.
	accel := "tcg,thread=multi"
	if o.Boot == BootInitramfs {
		accel = "tcg,thread=single"
	}
	args := []string{"-accel", accel, "-cpu", "max", "-nodefaults", "-display", "none", "-name", o.Name}
	if o.Arguments != nil {
		args = append(args, o.Arguments...)
	} else {
		args = append(args, "-smp", fmt.Sprint(o.CPUs), "-m", fmt.Sprint(o.MemoryMiB), "-machine", "q35,memory-backend=mem",
			"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", o.MemoryMiB))
		for i := range hotPlugPorts {
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d", i, i+1))
		}
		for i, socket := range o.Disks {
			device := fmt.Sprintf("vhost-user-blk-pci,id=disk%d,chardev=char%d,bus=port%d,num-queues=%d,disable-legacy=on,bootindex=%d",
				i, i, i, o.Queues, i+1)
			if i < len(o.QueueSize) && o.QueueSize[i] != 0 {
				device += fmt.Sprintf(",queue-size=%d", o.QueueSize[i])
			}
			args = append(args, "-chardev", fmt.Sprintf("socket,id=char%d,path=%s,%s", i, socket, o.QEMU.Reconnect(o.ReconnectMS)),
				"-device", device)
		}
	}
	kernel := func(initrd, command string) {
		args = append(args, "-kernel", o.Golden.Kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 loglevel=5 "+command)
	}
	switch o.Boot {
	case BootInitramfs:
		kernel(o.Golden.Quick, "")
	case BootQuick:
		kernel(o.Golden.Quick, "quick=root")
	case BootDirect:
		kernel(o.Golden.Initrd, "root=/dev/vda2 ro")
	case BootBIOS: // QEMU's default firmware
	case BootUEFI:
		flash, err := o.flash()
		if err != nil {
			return nil, err
		}
		args = append(args, flash...)
	}
	return append(args, o.Extra...), nil
}

// ovmf is where Debian's package ovmf keeps the firmware.
const ovmf = "/usr/share/OVMF/"

// flash gives the machine UEFI firmware and variables of its own.
func (o MachineOptions) flash() ([]string, error) {
	template, err := os.ReadFile(ovmf + "OVMF_VARS_4M.fd")
	if err != nil {
		return nil, fmt.Errorf("%w: install the package ovmf", err)
	}
	vars := filepath.Join(o.Dir, o.Name+".vars")
	if err := os.WriteFile(vars, template, 0o600); err != nil {
		return nil, err
	}
	return []string{
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + ovmf + "OVMF_CODE_4M.fd",
		"-drive", "if=pflash,unit=1,format=raw,file=" + vars,
	}, nil
}

// StartMachine starts QEMU and connects to its monitor; it does not wait for
// the guest (Boot does). ctx bounds the start only.
func StartMachine(ctx context.Context, o MachineOptions) (*Machine, error) {
	o = o.defaults()
	args, err := o.arguments()
	if err != nil {
		return nil, err
	}
	m := &Machine{o: o}
	if m.Console, err = ListenPort(filepath.Join(o.Dir, o.Name+".console"), nil); err != nil {
		return nil, err
	}
	if m.Agent, err = ListenAgent(filepath.Join(o.Dir, o.Name+".agent")); err != nil {
		m.Close()
		return nil, err
	}
	monitor := filepath.Join(o.Dir, o.Name+".qmp")
	args = append(args,
		"-chardev", "socket,id=console,path="+m.Console.Path, "-serial", "chardev:console",
		"-chardev", "socket,id=agent,path="+m.Agent.port.Path, "-serial", "chardev:agent",
		"-qmp", "unix:"+monitor+",server=on,wait=off")
	m.started = time.Now()
	if m.Process, err = StartProcess(o.Name, exec.Command(o.QEMU.Program, args...)); err != nil {
		m.Close()
		return nil, err
	}
	ctx, stop := m.while(ctx)
	defer stop()
	if m.Monitor, err = DialMonitor(ctx, monitor); err != nil {
		m.Close()
		return nil, m.explain(err)
	}
	return m, nil
}

// errEnded is why waits on a machine fail once its QEMU has ended.
var errEnded = errors.New("QEMU has ended")

// ErrEmulator reports that QEMU's emulation of several processors failed, which
// happens now and then before the guest uses a disk for anything but booting: an
// assertion of its own while the kernel lays out its PCI devices (QEMU issue
// 1921, seen up to 10.0), or a processor whose timer never fires (seen once, in
// 10.0: the kernel's RCU stalls say "possible timer handling issue" for as long
// as the guest runs). It says nothing about back-ends: start the machine again.
var ErrEmulator = errors.New("QEMU's emulation failed")

const emulatorAssertion = "iotlb_to_section: Assertion"

// while returns a context that ends with the QEMU process, too.
func (m *Machine) while(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-m.Done():
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); <-watching }
}

// explain adds what the machine printed last.
func (m *Machine) explain(err error) error {
	if err == nil {
		return nil
	}
	said := ""
	if m.Process != nil {
		said = m.Output()
	}
	return fmt.Errorf("%s: %w\n--- QEMU printed\n%s\n--- console\n%s", m.o.Name, err, said, m.Console.Tail())
}

// Ready waits for the guest's next boot to finish and returns how long the
// machine has been running, with what the guest said about itself.
func (m *Machine) Ready(ctx context.Context) (Boot, time.Duration, error) {
	ctx, stop := m.while(ctx)
	defer stop()
	b, err := m.Agent.Ready(ctx)
	if err != nil && !m.Running() && strings.Contains(m.Output(), emulatorAssertion) {
		err = errors.Join(ErrEmulator, err)
	}
	took := time.Since(m.started)
	if err == nil && m.o.CPUs > 1 && m.o.Boot != BootInitramfs {
		err = m.timers(ctx)
	}
	return b, took, m.explain(err)
}

// timers sleeps on each of the guest's processors.
const timers = `
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c "$cpu" sleep 0.02 & done
wait
`

// timerStall is what the kernel prints of a processor whose timer does not fire (kernel/rcu/tree_stall.h).
const timerStall = "possible timer handling issue"

// timersPatience is how long a busy host may take for a sleep of 20 ms.
const timersPatience = time.Minute

// timers finds out whether every processor of the guest has a timer that fires.
func (m *Machine) timers(ctx context.Context) error {
	patient, cancel := context.WithTimeout(ctx, timersPatience)
	defer cancel()
	_, err := m.Agent.Run(patient, timers)
	if err == nil || ctx.Err() != nil || patient.Err() == nil {
		return err
	}
	err = fmt.Errorf("a processor of the guest did not sleep for 20 ms in %v: %w", timersPatience, err)
	// Without the kernel's own word the guest may just as well wait for its disk: that is a fault of
	// the back-end, and must not be tried again.
	if strings.Contains(m.Console.Tail(), timerStall) {
		return fmt.Errorf("%w: %w", ErrEmulator, err)
	}
	return err
}

// Run is Agent.Run, ended early when QEMU dies.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	ctx, stop := m.while(ctx)
	defer stop()
	out, err := m.Agent.Run(ctx, script)
	if errors.Is(err, ErrScript) {
		return out, fmt.Errorf("%s: %w", m, err) // the console says nothing about it
	}
	return out, m.explain(err)
}

// Event is Monitor.Event, ended early when QEMU dies.
func (m *Machine) Event(ctx context.Context, name string, want map[string]any) error {
	ctx, stop := m.while(ctx)
	defer stop()
	_, err := m.Monitor.Event(ctx, name, want)
	return m.explain(err)
}

// powerOff leaves clean file systems behind, with systemd or without.
const powerOff = `
sync
if [ -d /run/systemd/system ]; then systemctl poweroff; exit; fi
umount -a -t ext4,xfs,btrfs 2>/dev/null
mount -o remount,ro / 2>/dev/null
systemctl poweroff -ff 2>/dev/null || poweroff -f
`

// PowerOff shuts the guest down in an orderly way and waits for QEMU to end.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.Send(powerOff); err != nil {
		return m.explain(err)
	}
	if err := m.Wait(ctx); err != nil {
		return m.explain(err)
	}
	m.Close()
	return nil
}

// Command runs one QMP command.
func (m *Machine) Command(command string, args map[string]any) error {
	if err := m.Monitor.Run(command, args, nil); err != nil {
		return fmt.Errorf("%s: %w\n--- QEMU printed\n%s", m, err, m.Output())
	}
	return nil
}

// Quit ends QEMU by its monitor, the guest unasked, as a power cut would.
func (m *Machine) Quit(ctx context.Context) error {
	if err := m.Command("quit", nil); err != nil {
		return err
	}
	err := m.Wait(ctx)
	m.Close()
	return err
}

// Close kills QEMU if it still runs and frees everything. May be called twice.
func (m *Machine) Close() {
	if m.Process != nil {
		m.Kill()
	}
	if m.Monitor != nil {
		m.Monitor.Close()
	}
	if m.Agent != nil {
		m.Agent.Close()
	}
	m.Console.Close()
}

// String names the machine.
func (m *Machine) String() string { return strings.TrimSpace(m.o.Name) }
