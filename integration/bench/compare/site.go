package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
)

// patience bounds every wait for a server.
const patience = time.Minute

// site is the directory of a run, with the servers of its files.
type site struct {
	*settings
	dir     string
	servers map[string]*harness.Backend              // by contender
	command map[string]func(socket string) *exec.Cmd // command that starts the server
	sockets int
	fresh   int    // disks made for one sample so far
	mapped  []byte // the base, mapped on first use
	closers []func() error
	cold    struct { // misses beside hot reads, over all rounds
		slowed     bool // the disk is throttled
		done       int
		wait, time time.Duration
	}
	results *report.Results
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) base() string { return s.path("base.img") }

func (s *site) store() *harness.Store {
	return &harness.Store{Binary: s.cowblk, Dir: s.path("store")}
}

// close kills every server without a flush and removes the files.
func (s *site) close() error {
	for _, b := range s.servers {
		b.Kill()
	}
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// socket returns a new socket path, short enough for a UNIX socket.
func (s *site) socket() string {
	s.sockets++
	return s.path(fmt.Sprintf("s%d", s.sockets))
}

// startServer starts a server that runs until the end.
func (s *site) startServer(ctx context.Context, contender string,
	cmd func(socket string) *exec.Cmd) error {
	b, err := s.start(ctx, cmd)
	if err != nil {
		return fmt.Errorf("%s: %w", contender, err)
	}
	if s.servers == nil {
		s.servers, s.command = map[string]*harness.Backend{}, map[string]func(string) *exec.Cmd{}
	}
	s.servers[contender], s.command[contender] = b, cmd
	return nil
}

// readyServers has the servers of tasks read their whole disks before they are measured, and
// restarts them first if renew is set. An instance's speed depends by up to a quarter on where its
// memory lies; with restarts this is part of the spread and not of the result.
func (s *site) readyServers(ctx context.Context, tasks []task, renew bool) error {
	done := map[string]bool{}
	for _, t := range tasks {
		b := s.servers[t.contender]
		// The throttled server is compared with itself only, and must not read its cold blocks.
		if b == nil || done[t.contender] || t.contender == report.SlowStack {
			continue
		}
		done[t.contender] = true
		if renew {
			if err := s.restart(ctx, t.contender, b); err != nil {
				return fmt.Errorf("%s, restarted: %w", t.contender, err)
			}
		}
		// The second time from the server's own cache.
		for range 2 {
			if err := readServed(ctx, s.servers[t.contender].Socket); err != nil {
				return fmt.Errorf("%s: reading its disk: %w", t.contender, err)
			}
		}
	}
	return nil
}

func (s *site) restart(ctx context.Context, contender string, b *harness.Backend) error {
	ending, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := b.Stop(ending); err != nil {
		return err
	}
	return s.startServer(ctx, contender, s.command[contender])
}

func (s *site) start(ctx context.Context, cmd func(socket string) *exec.Cmd) (*harness.Backend,
	error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	socket := s.socket()
	return harness.StartBackend(ctx, cmd(socket), socket)
}

// serve returns "cowblk serve" for a disk of the store.
func (s *site) serve(disk string, options ...string) func(string) *exec.Cmd {
	return func(socket string) *exec.Cmd {
		return s.store().Cmd(append([]string{"serve", disk, "--socket-path", socket},
			options...)...)
	}
}

// passThrough returns "cowblk serve" for a raw file.
func (s *site) passThrough(file string, options ...string) func(string) *exec.Cmd {
	return func(socket string) *exec.Cmd {
		return exec.Command(s.cowblk, append([]string{"serve", "--blk-file", file, "--socket-path",
			socket}, options...)...)
	}
}

// tool runs a program to its end.
func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return nil
}
