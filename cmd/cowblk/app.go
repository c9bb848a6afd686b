package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"cowblk/backend/daemon"
	"cowblk/cow/shell"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// app holds the state that all sub-commands share: streams, environment and global options. Tests
// build one on buffers.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	// lookupEnv is os.LookupEnv: it tells an empty variable from one that is not set. nil: no
	// variable is set.
	lookupEnv func(string) (string, bool)
	// terminal reports whether a stream is a terminal. Progress bars and questions appear only
	// there.
	terminal func(stream any) bool
	// width returns the number of columns of a terminal, or 0 if the stream is not a terminal or
	// does not report it. nil: always 0.
	width func(stream any) int
	// kvm reports whether this user can use /dev/kvm. It selects the default domain type of "cowblk
	// xml".
	kvm func() bool
	// files is the file system on which stores are opened; nil: the machine's.
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
		kvm:      canUseKVM,
	}
}

// run executes one command line and returns the exit code of the process. SIGINT, SIGTERM and
// SIGHUP cancel the context of the command, which then undoes incomplete work. Another signal, a
// second later or after that, ends the process at once.
func run(args []string, a *app) int {
	ctx, stop := signalContext(context.Background())
	defer stop()
	out := &output{w: a.out}
	a.out = out
	defer func() { a.out = out.w }()
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	err = out.check(cmd, err)
	a.json = a.json || hasJSONFlag(args) // a command-line error may precede --json
	if err == nil {
		return exitOK
	}
	err = daemon.ExplainLimits(err)
	code := exitCodeOf(ctx, err)
	a.printError(err, code)
	return code
}

// hasJSONFlag reports whether --json is among cowblk's own arguments, those before "--".
func hasJSONFlag(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}

// dir returns the directory of the store from --store, $COWBLK_STORE or the default.
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

// openStore opens the store that the command line names. A store that does not exist yet is empty.
func (a *app) openStore() (*store.Store, error) {
	dir, err := a.dir()
	if err != nil {
		return nil, err
	}
	return store.Open(dir, store.Options{FS: a.files, Log: a.logger(), Getenv: a.getenv,
		Command: a.program()})
}

// openTrusted is openStore for a command that changes something, queries a process that serves a
// disk, or has QEMU connect to one: such a command believes what the store says of them.
// ErrInvalid: the store belongs to another user.
func (a *app) openTrusted() (*store.Store, error) {
	s, err := a.openStore()
	if err == nil {
		err = s.Trusted()
	}
	return s, err
}

// program returns the start of a command line that calls cowblk on the same store, for advice in
// messages.
func (a *app) program() string {
	if a.storeDir == "" {
		return "cowblk"
	}
	return "cowblk --store " + shell.Path(a.storeDir)
}

// command returns a complete command line for advice in messages; each word is quoted for a shell.
func (a *app) command(words ...string) string {
	return strings.Join([]string{a.program(), shell.Line(words...)}, " ")
}

// logger returns a logger of warnings, or with --debug of everything, on standard error.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	return a.newLogger(level)
}

// newLogger returns a logger on standard error that writes text lines or, with --json, JSON
// objects.
func (a *app) newLogger(level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}
