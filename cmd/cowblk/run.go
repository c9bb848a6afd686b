package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/cow/store"
)

// runOptions are those of "cowblk run".
type runOptions struct {
	guest guestOptions
	data  dataFlags
	qemu  string // binary
	accel string

	dataGiven bool // one of dataFlagNames
}

// quitGrace is how long QEMU may take to end after SIGTERM.
const quitGrace = 10 * time.Second

func newRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run NAME [-- QEMU ARGS...]",
		Short: "Boot a guest from a disk: serve it and run QEMU, console attached",
		Long: `Serve a disk and run QEMU on it in the foreground, with the guest's serial console on this
terminal. The disk boots by its own boot loader unless the QEMU arguments name a kernel. A disk that
another process serves already is used from there.

QEMU arguments follow after "--" and are added as they are; with -display, -nographic or -serial among
them, the console is left to you. Ctrl-A x ends QEMU, Ctrl-A h shows more keys.

QEMU and this process end together, whichever is killed. So do they when the disk is stopped with
"cowblk stop". A --qemu that is a script has to exec QEMU; -daemonize is refused.`,
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
				return usagef("run: -daemonize would leave QEMU behind: serve the disk (%s) and start QEMU yourself (%s)",
					a.command("serve", args[0]), a.command("qemu-args", args[0]))
			}
			o.dataGiven = slices.ContainsFunc(dataFlagNames(), cmd.Flags().Changed)
			return a.runGuest(cmd.Context(), args[0], &o, args[1:])
		},
	}
	o.guest.register(cmd)
	o.data.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU `BINARY` to run")
	fl.StringVar(&o.accel, "accel", "", "accelerator, as QEMU's -accel has it (default: kvm if you can use /dev/kvm, else tcg)")
	return cmd
}

// runArgs wants one name; everything after "--" is QEMU's.
func runArgs(cmd *cobra.Command, args []string) error {
	own := len(args)
	if at := cmd.ArgsLenAtDash(); at >= 0 {
		own = at
	}
	return exactArgs("NAME")(cmd, args[:own])
}

// runGuest serves the disk, unless somebody does, and runs QEMU until it ends or ctx is done.
func (a *app) runGuest(ctx context.Context, name string, o *runOptions, extra []string) (err error) {
	st, err := a.openTrusted()
	if err != nil {
		return err
	}
	binary, err := exec.LookPath(o.qemu)
	if err != nil {
		return fmt.Errorf("QEMU: %w: install it (Debian: qemu-system-x86), or name it with --qemu", err)
	}
	reconnectMS, err := newReconnect(ctx, binary)
	if err != nil {
		return err
	}
	served, err := a.serveForRun(ctx, st, name, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, served.stop()) }()

	line := append(o.guest.machineArgs(), o.guest.diskArgs(name, served.socket, 0, reconnectMS)...)
	line = append(line, "-accel", o.accelerator(a))
	if !ownConsole(extra) {
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
		return nil // told to end, and it did
	case served.alive.Err() != nil:
		return fmt.Errorf("disk %q is served no longer: QEMU was ended", name)
	case err != nil:
		return fmt.Errorf("QEMU (%s) for disk %q: %w", binary, name, err)
	}
	return nil
}

// runBound runs cmd, which the kernel kills when this process ends in whatever way (PR_SET_PDEATHSIG, prctl(2)): a QEMU
// that is left behind would connect to the next process that serves its disk. The signal comes when the thread that has
// started the child ends, which a Go runtime may do at any time: that thread is kept here until the child has ended.
func runBound(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	return <-ended
}

// servedForRun is the disk of a run.
type servedForRun struct {
	socket string
	alive  context.Context // ends when the disk is served no longer by this process
	stop   func() error
}

// serveForRun finds the disk's socket, or serves the disk in this process.
func (a *app) serveForRun(ctx context.Context, st *store.Store, name string, o *runOptions) (*servedForRun, error) {
	v, err := st.ServingError(name)
	if errors.Is(err, store.ErrInvalid) {
		return nil, err
	}
	if v != nil && v.Socket != "" {
		if o.dataGiven {
			return nil, usagef("run: disk %q is served by process %d already: give --%s there", name, v.PID, strings.Join(dataFlagNames(), ", --"))
		}
		return &servedForRun{v.Socket, context.Background(), func() error { return nil }}, nil
	}
	f := serveFlags{fd: -1, socketPath: o.guest.socket, queues: backend.DefaultQueues, data: o.data}
	s, err := a.openServing(ctx, []string{name}, &f, a.logger())
	if err != nil {
		return nil, err
	}
	socket, err := o.guest.socketOf(st, name)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	// Not ctx: on Ctrl-C QEMU goes first, then what it uses.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	alive, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		defer end()
		ended <- s.daemon.Run(serving)
	}()
	return &servedForRun{socket, alive, func() error {
		cancel()
		return errors.Join(<-ended, s.close())
	}}, nil
}

// daemonizes reports whether QEMU would go to the background.
func daemonizes(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return strings.TrimLeft(arg, "-") == "daemonize" && strings.HasPrefix(arg, "-") })
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

// ownConsole reports whether QEMU arguments decide themselves where the console goes.
func ownConsole(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		return slices.Contains([]string{"display", "nographic", "serial"}, strings.TrimLeft(arg, "-"))
	})
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// newReconnect reports whether this QEMU wants reconnect-ms: from 9.2 on the old spelling is deprecated.
func newReconnect(ctx context.Context, binary string) (bool, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return false, fmt.Errorf("%s --version: %w", binary, err)
	}
	m := qemuVersion.FindStringSubmatch(string(out))
	if m == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		return false, fmt.Errorf("%s --version: expected \"version NUMBER\", found %q", binary, first)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 9 || major == 9 && minor >= 2, nil
}
