package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// app is what every sub-command shares: streams, environment, the global options. Tests make one with buffers.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	// lookupEnv is os.LookupEnv: what is set and empty is another thing than what is not set. nil: nothing is.
	lookupEnv func(string) (string, bool)
	// terminal reports whether a person sits at the stream: progress bars and questions only then.
	terminal func(stream any) bool
	// kvm reports whether this user can use /dev/kvm: the default domain type of "cowblk xml".
	kvm func() bool
	// files is what stores are opened on; nil: the machine's file system.
	files vfs.FS

	storeDir string // --store; empty: $COWBLK_STORE, then the default
	json     bool   // --json
	debug    bool   // --debug
}

func newApp() *app {
	return &app{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		getenv: os.Getenv, lookupEnv: os.LookupEnv,
		terminal: isTerminal,
		kvm:      func() bool { return unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil },
	}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// run executes one command line and returns the process's exit code. SIGINT and SIGTERM cancel the command's context:
// the command undoes what it has half done. A second signal ends the process at once.
func run(args []string, a *app) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	a.printError(explainLimits(err))
	return exitCode(err)
}

// dir is the store's directory as the options and the environment say.
func (a *app) dir() (string, error) {
	if a.storeDir != "" {
		return a.storeDir, nil
	}
	d := a.getenv("COWBLK_STORE")
	if strings.TrimSpace(d) != "" {
		return d, nil
	}
	if a.lookupEnv != nil {
		if _, set := a.lookupEnv("COWBLK_STORE"); set {
			return "", usagef("COWBLK_STORE: %w", errEmpty)
		}
	}
	return store.DefaultDir(a.getenv)
}

// openStore opens the store that the command line names. A store that does not exist yet is an empty one.
func (a *app) openStore() (*store.Store, error) {
	dir, err := a.dir()
	if err != nil {
		return nil, err
	}
	return store.Open(dir, store.Options{FS: a.files, Log: a.logger(), Getenv: a.getenv})
}

// logger writes to standard error: warnings, and with --debug everything.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}
