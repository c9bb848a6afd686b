package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// runOptions holds the options of "cowblk run".
type runOptions struct {
	guest guestOptions
	data  dataFlags
	qemu  string // binary
	accel string

	dataFlagsSet bool // one of dataFlagNames is on the command line
}

// quitGrace bounds how long QEMU may take to end after SIGTERM.
const quitGrace = 10 * time.Second

func newRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run NAME [-- QEMU ARGS...]",
		Short: "Boot a guest from a disk: serve it and run QEMU, console attached",
		Long: `Serve a disk and run QEMU on it in the foreground, with the guest's serial console on this terminal.
The disk boots with its own boot loader unless the QEMU arguments name a kernel. If another process
serves the disk, QEMU uses that process.

Arguments after "--" are passed to QEMU unchanged. If they contain -display, -nographic or -serial, the
console is not configured. Ctrl-A x ends QEMU, Ctrl-A h shows more keys.

QEMU and this process end together, also if either is killed or the disk is stopped with "cowblk stop".
If --qemu is a script, it must exec QEMU; -daemonize is refused.`,
		Example: `  cowblk run vm1
  cowblk run vm1 --memory 4G --vcpus 4 -- -nic user,hostfwd=tcp::2222-:22
  cowblk run vm1 -- -kernel vmlinuz -initrd initrd.img -append "root=/dev/vda console=ttyS0"`,
		Args:              runArgs,
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.guest.check(1); err != nil {
				return err
			}
			if err := o.data.check("run"); err != nil {
				return err
			}
			if daemonizes(args[1:]) {
				return usagef(
					"run: -daemonize would leave QEMU behind: serve the disk (%s) and start QEMU yourself (%s)",
					a.command("serve", args[0]), a.command("qemu-args", args[0]))
			}
			o.dataFlagsSet = slices.ContainsFunc(dataFlagNames(), cmd.Flags().Changed)
			return a.runGuest(cmd.Context(), args[0], &o, args[1:])
		},
	}
	o.guest.register(cmd)
	o.data.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU `BINARY` to run")
	fl.StringVar(&o.accel, "accel", "",
		"accelerator, as QEMU's -accel has it (default: kvm if you can use /dev/kvm, else tcg)")
	return cmd
}

// runArgs accepts one name, and any arguments for QEMU after "--".
func runArgs(cmd *cobra.Command, args []string) error {
	n := len(args)
	if at := cmd.ArgsLenAtDash(); at >= 0 {
		n = at
	}
	return exactArgs("NAME")(cmd, args[:n])
}

// runGuest runs QEMU on the disk until QEMU ends or ctx is done. It serves the disk unless another
// process does.
func (a *app) runGuest(ctx context.Context, name string, o *runOptions,
	extra []string) (err error) {
	st, err := a.openTrusted()
	if err != nil {
		return err
	}
	binary, err := exec.LookPath(o.qemu)
	if err != nil {
		return fmt.Errorf("QEMU: %w: install it (Debian: qemu-system-x86), or name it with --qemu",
			err)
	}
	reconnectMS, err := wantsReconnectMS(ctx, binary)
	if err != nil {
		return err
	}
	served, err := a.openForRun(ctx, st, name, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, served.stop()) }()

	line := append(o.guest.machineArgs(), o.guest.diskArgs(name, served.socket, 0, reconnectMS)...)
	line = append(line, "-accel", o.accelerator(a))
	if !setsConsole(extra) {
		line = append(line, "-nographic")
	}
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(served.alive, cancel)()
	cmd := exec.CommandContext(alive, binary, append(line, extra...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.standardOutput(), a.err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = quitGrace
	err = runBound(cmd)
	switch {
	case ctx.Err() != nil:
		return nil // ended as requested
	case served.alive.Err() != nil:
		return fmt.Errorf("disk %q is no longer served: QEMU was ended", name)
	case err != nil:
		return fmt.Errorf("QEMU (%s) for disk %q: %w", binary, name, err)
	}
	return nil
}

// runBound runs cmd as a child that the kernel kills when this process ends (PR_SET_PDEATHSIG,
// prctl(2)). A surviving QEMU would connect to the next process that serves its disk. The signal
// comes when the thread that forked the child ends, so this goroutine keeps its thread until the
// child has ended.
func runBound(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// runDisk is the disk of "cowblk run".
type runDisk struct {
	socket string
	alive  context.Context // ends when this process no longer serves the disk
	stop   func() error
}

// openForRun returns the socket of a served disk, or serves the disk in this process.
func (a *app) openForRun(ctx context.Context, st *store.Store, name string,
	o *runOptions) (*runDisk, error) {
	v, err := st.ServingError(name)
	if errors.Is(err, store.ErrInvalid) {
		return nil, err
	}
	if v != nil && v.Socket != "" {
		if o.dataFlagsSet {
			return nil, usagef("run: disk %q is served by process %d already: give --%s there",
				name, v.PID, strings.Join(dataFlagNames(), ", --"))
		}
		return &runDisk{v.Socket, context.Background(), func() error { return nil }}, nil
	}
	do := o.data.Options
	do.Log, do.Version, do.Store, do.Disks, do.SocketPath = a.logger(), controlVersion(), st,
		[]string{name}, o.guest.socket
	d, err := daemon.Open(ctx, do)
	if err != nil {
		return nil, optionUsage(err)
	}
	// Not ctx: at Ctrl-C QEMU must end before the disk that it uses.
	alive, stop := d.Start(context.WithoutCancel(ctx))
	return &runDisk{d.Socket(), alive, stop}, nil
}

// daemonizes reports whether QEMU would become a daemon.
func daemonizes(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		return strings.TrimLeft(arg, "-") == "daemonize" && strings.HasPrefix(arg, "-")
	})
}

func (o *runOptions) accelerator(a *app) string {
	switch {
	case o.accel != "":
		return o.accel
	case a.kvm():
		return "kvm"
	}
	return "tcg,thread=multi"
}

// setsConsole reports whether the QEMU arguments configure the console.
func setsConsole(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		return slices.Contains([]string{"display", "nographic", "serial"},
			strings.TrimLeft(arg, "-"))
	})
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// wantsReconnectMS reports whether this QEMU takes reconnect-ms. From 9.2 on, reconnect is
// deprecated.
func wantsReconnectMS(ctx context.Context, binary string) (bool, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return false, fmt.Errorf("%s --version: %w", binary, err)
	}
	m := qemuVersion.FindStringSubmatch(string(out))
	if m == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		return false, fmt.Errorf("%s --version: expected \"version NUMBER\", found %q", binary,
			first)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 9 || major == 9 && minor >= 2, nil
}

// canUseKVM reports whether this user can use /dev/kvm.
func canUseKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
