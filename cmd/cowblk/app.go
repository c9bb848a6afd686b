package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/cow/shell"
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
	// width is how many columns a terminal has; 0: the stream is none, or does not say. Nil: none is.
	width func(stream any) int
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
		width:    terminalWidth,
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

func terminalWidth(stream any) int {
	f, ok := stream.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// run executes one command line and returns the process's exit code. SIGINT, SIGTERM and SIGHUP cancel the command's
// context: the command undoes what it has half done. A second signal, a second later or more, ends the process at once.
func run(args []string, a *app) int {
	ctx, stop := untilSignal(context.Background())
	defer stop()
	out := &output{to: a.out}
	a.out = out
	defer func() { a.out = out.to }()
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	err = out.check(cmd, err)
	a.json = a.json || asksJSON(args) // an error of the command line may have come before --json
	if err == nil {
		return exitOK
	}
	err = explainLimits(err)
	code := exitCodeOf(ctx, err)
	a.printError(err, code)
	return code
}

// asksJSON reports whether --json is among the arguments that are cowblk's own.
func asksJSON(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
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
	return store.Open(dir, store.Options{FS: a.files, Log: a.logger(), Getenv: a.getenv, Command: a.program()})
}

// openTrusted is openStore for a command that changes something, asks a process that serves a disk, or has QEMU connect to
// one: what the store says of those is believed. Another user's store is an ErrInvalid.
func (a *app) openTrusted() (*store.Store, error) {
	s, err := a.openStore()
	if err == nil {
		err = s.Trusted()
	}
	return s, err
}

// program is how this command line calls cowblk on its store: for texts that say what to type next.
func (a *app) program() string {
	if a.storeDir == "" {
		return "cowblk"
	}
	return "cowblk --store " + shell.Path(a.storeDir)
}

// command is a command line that a text advises, each of words quoted for a shell.
func (a *app) command(words ...string) string {
	return strings.Join([]string{a.program(), shell.Line(words...)}, " ")
}

// logger writes to standard error: warnings, and with --debug everything.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	return a.loggerFrom(level)
}

// loggerFrom writes lines of text or, with --json, JSON objects, to standard error.
func (a *app) loggerFrom(level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}
