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

// BootFrom selects how a machine boots.
type BootFrom int

// The ways to boot, fastest first. All but BootInitramfs use a root on the first disk.
const (
	BootInitramfs BootFrom = iota // a shell in the initramfs, no disk needed
	BootQuick                     // the golden root without systemd: every tool in about 6 s
	BootDirect                    // -kernel, Debian's initramfs, systemd
	BootBIOS                      // SeaBIOS, extlinux, systemd
	BootUEFI                      // OVMF, systemd-boot, systemd
)

// MachineOptions describes one QEMU process.
type MachineOptions struct {
	Name   string // for messages and file names; default "guest"
	Dir    string // existing directory for its sockets; short, for the limit on UNIX socket paths
	QEMU   QEMU   // default InstalledQEMU
	Golden Golden // what to boot
	Boot   BootFrom

	CPUs      int // default 1
	MemoryMiB int // default 512

	// Disks are vhost-user-blk sockets. The first is vda in the guest. The QEMU devices are disk0,
	// disk1, …, each behind the hot-plug port of that index.
	Disks  []string
	Queues int // for each disk; default CPUs
	// QueueSize is the property queue-size of each disk by index, in descriptors. 0 or missing:
	// QEMU's default, 128.
	QueueSize []int
	// ReconnectMS is the interval at which QEMU tries to reach a lost back-end; default 1,000. See
	// QEMU.Reconnect.
	ReconnectMS int

	// Arguments, if set, replaces the harness's QEMU arguments for processors, memory and disks.
	Arguments []string
	Extra     []string // appended to QEMU's arguments
}

// Machine is a running QEMU with the harness's ends of its ports. Callers may use the embedded
// process, agent and monitor directly.
type Machine struct {
	*Process
	*Agent
	*Monitor
	Console *Port

	o       MachineOptions
	started time.Time
}

// defaults fills in unset options.
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

// hotPlugPorts is the number of a machine's PCIe ports for disks.
const hotPlugPorts = 4

// arguments returns QEMU's arguments except those for the harness's own ports.
func (o MachineOptions) arguments() ([]string, error) {
	// Emulation: a stock kernel must run wherever the tests do. BootInitramfs needs no speed and
	// runs its processors in turn on one thread, which cannot cause ErrEmulator.
	accel := "tcg,thread=multi"
	if o.Boot == BootInitramfs {
		accel = "tcg,thread=single"
	}
	args := []string{"-accel", accel, "-cpu", "max", "-nodefaults", "-display", "none", "-name",
		o.Name}
	if o.Arguments != nil {
		args = append(args, o.Arguments...)
	} else {
		args = append(args, "-smp", fmt.Sprint(o.CPUs), "-m", fmt.Sprint(o.MemoryMiB), "-machine",
			"q35,memory-backend=mem",
			"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", o.MemoryMiB))
		for i := range hotPlugPorts {
			args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d", i,
				i+1))
		}
		for i, socket := range o.Disks {
			device := fmt.Sprintf(
				"vhost-user-blk-pci,id=disk%d,chardev=char%d,bus=port%d,num-queues=%d,disable-legacy=on,bootindex=%d",
				i, i, i, o.Queues, i+1)
			if i < len(o.QueueSize) && o.QueueSize[i] != 0 {
				device += fmt.Sprintf(",queue-size=%d", o.QueueSize[i])
			}
			args = append(args, "-chardev", fmt.Sprintf("socket,id=char%d,path=%s,%s", i, socket,
				o.QEMU.Reconnect(o.ReconnectMS)),
				"-device", device)
		}
	}
	kernel := func(initrd, command string) {
		args = append(args, "-kernel", o.Golden.Kernel, "-initrd", initrd, "-append",
			"console=ttyS0 panic=-1 loglevel=5 "+command)
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

// ovmf is the firmware directory of Debian's package ovmf.
const ovmf = "/usr/share/OVMF/"

// flash returns arguments for UEFI firmware with a private copy of its variables.
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

// StartMachine starts QEMU and connects to its monitor. It does not wait for the guest (Ready
// does). ctx bounds the start only.
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
	ctx, stop := m.untilExit(ctx)
	defer stop()
	if m.Monitor, err = DialMonitor(ctx, monitor); err != nil {
		m.Close()
		return nil, m.withOutput(err)
	}
	return m, nil
}

// errEnded is the error of waits on a machine whose QEMU has ended.
var errEnded = errors.New("QEMU has ended")

// ErrEmulator reports that QEMU's emulation of several processors failed. This happens now and then
// before the guest uses a disk for anything but booting: an assertion of QEMU fails while the
// kernel lays out its PCI devices (QEMU issue 1921, seen up to 10.0), or a processor's timer never
// fires (seen once, in 10.0: the kernel's RCU stall reports say "possible timer handling issue" as
// long as the guest runs). The back-end is not the cause: start the machine again.
var ErrEmulator = errors.New("QEMU's emulation failed")

const emulatorAssertion = "iotlb_to_section: Assertion"

// untilExit returns a context that also ends with the QEMU process.
func (m *Machine) untilExit(ctx context.Context) (context.Context, func()) {
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

// withOutput adds the end of the machine's output to err.
func (m *Machine) withOutput(err error) error {
	if err == nil {
		return nil
	}
	output := ""
	if m.Process != nil {
		output = m.Output()
	}
	return fmt.Errorf("%s: %w\n--- QEMU printed\n%s\n--- console\n%s", m.o.Name, err, output,
		m.Console.Tail())
}

// Ready waits until the guest's next boot has finished. It returns the guest's report and the time
// since the machine was started.
func (m *Machine) Ready(ctx context.Context) (Boot, time.Duration, error) {
	ctx, stop := m.untilExit(ctx)
	defer stop()
	b, err := m.Agent.Ready(ctx)
	if err != nil && !m.Running() && strings.Contains(m.Output(), emulatorAssertion) {
		err = errors.Join(ErrEmulator, err)
	}
	took := time.Since(m.started)
	if err == nil && m.o.CPUs > 1 && m.o.Boot != BootInitramfs {
		err = m.checkTimers(ctx)
	}
	return b, took, m.withOutput(err)
}

// timersScript sleeps on each of the guest's processors.
const timersScript = `
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c "$cpu" sleep 0.02 & done
wait
`

// timerStall is the kernel's message about a processor whose timer does not fire
// (kernel/rcu/tree_stall.h).
const timerStall = "possible timer handling issue"

// timersLimit bounds a sleep of 20 ms in the guest of a busy host.
const timersLimit = time.Minute

// checkTimers returns ErrEmulator if a timer of a guest's processor does not fire.
func (m *Machine) checkTimers(ctx context.Context) error {
	patient, cancel := context.WithTimeout(ctx, timersLimit)
	defer cancel()
	_, err := m.Agent.Run(patient, timersScript)
	if err == nil || ctx.Err() != nil || patient.Err() == nil {
		return err
	}
	err = fmt.Errorf("a processor of the guest did not sleep for 20 ms in %v: %w", timersLimit, err)
	// Without the kernel's message the guest may be waiting for its disk. That is a fault of the
	// back-end and must not be retried.
	if strings.Contains(m.Console.Tail(), timerStall) {
		return fmt.Errorf("%w: %w", ErrEmulator, err)
	}
	return err
}

// Run calls Agent.Run and returns early if QEMU dies.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	ctx, stop := m.untilExit(ctx)
	defer stop()
	out, err := m.Agent.Run(ctx, script)
	if errors.Is(err, ErrScript) {
		return out, fmt.Errorf("%s: %w", m, err) // the console has nothing about it
	}
	return out, m.withOutput(err)
}

// Event calls Monitor.Event and returns early if QEMU dies.
func (m *Machine) Event(ctx context.Context, name string, want map[string]any) error {
	ctx, stop := m.untilExit(ctx)
	defer stop()
	_, err := m.Monitor.Event(ctx, name, want)
	return m.withOutput(err)
}

// powerOff unmounts the file systems cleanly, with or without systemd.
const powerOff = `
sync
if [ -d /run/systemd/system ]; then systemctl poweroff; exit; fi
umount -a -t ext4,xfs,btrfs 2>/dev/null
mount -o remount,ro / 2>/dev/null
systemctl poweroff -ff 2>/dev/null || poweroff -f
`

// PowerOff shuts the guest down cleanly and waits for QEMU to end.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.Send(powerOff); err != nil {
		return m.withOutput(err)
	}
	if err := m.Wait(ctx); err != nil {
		return m.withOutput(err)
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

// Quit ends QEMU through its monitor without notice to the guest, like a power cut.
func (m *Machine) Quit(ctx context.Context) error {
	if err := m.Command("quit", nil); err != nil {
		return err
	}
	err := m.Wait(ctx)
	m.Close()
	return err
}

// Close kills QEMU if it still runs and frees everything. It may be called twice.
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
