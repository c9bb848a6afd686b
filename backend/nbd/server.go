package nbd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cowblk/backend/loglimit"
)

// Disk is the content of an export; *cow.Disk implements it. ReadAt must allow concurrent calls.
type Disk interface {
	io.ReaderAt
	Size() int64    // bytes, a multiple of 512, constant
	BlockSize() int // bytes; the preferred block size, if more than 4096
}

// Options configures a Server; the zero value is usable.
type Options struct {
	Log           *slog.Logger  // default: slog.Default
	Group         string        // group that may connect to UNIX sockets; default: none
	Connections   int           // maximum number of connections; default: 64
	PerExport     int           // maximum number of connections to one export; default: 16
	HandshakeTime time.Duration // from accept to the end of the handshake; default: 10 s
	StallTime     time.Duration // for one message, in either direction; default: 1 min
	IdleTime      time.Duration // between two requests; default: 1 h
	CloseTime     time.Duration // for a client to close after NBD_CMD_DISC; default: 1 s
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Connections = cmp.Or(o.Connections, 64)
	o.PerExport = cmp.Or(o.PerExport, 16)
	o.HandshakeTime = cmp.Or(o.HandshakeTime, 10*time.Second)
	o.StallTime = cmp.Or(o.StallTime, time.Minute)
	o.IdleTime = cmp.Or(o.IdleTime, time.Hour)
	o.CloseTime = cmp.Or(o.CloseTime, time.Second)
	return o
}

// Server serves exports by name on any number of sockets. Its methods may be called from any
// goroutine.
type Server struct {
	opts Options
	log  *slog.Logger
	wg   sync.WaitGroup // accept loops and clients
	done chan struct{}  // closed by Close

	mu        sync.Mutex
	exports   map[string]*export
	listeners []*listener
	clients   map[*client]struct{}
	accepted  uint64 // clients so far
	closed    bool
}

// export is one export. Server.mu guards its fields, except the constant ones.
type export struct {
	name    string // constant
	disk    Disk   // constant; the caller's
	clients int    // pins
	total   uint64 // clients so far
	drained chan struct{}
	removed bool // drained is closed when the last client is gone
}

type listener struct {
	net.Listener
	addr Address
}

// New returns a server without exports and sockets.
func New(o Options) *Server {
	o = o.withDefaults()
	return &Server{
		opts: o, log: loglimit.New(o.Log), done: make(chan struct{}),
		exports: map[string]*export{}, clients: map[*client]struct{}{},
	}
}

// AddExport exports disk. The caller owns the disk and may close it after RemoveExport or Close.
// Errors: ErrExists, ErrName, ErrSize, ErrClosed.
func (s *Server) AddExport(name string, disk Disk) error {
	if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w %q: expected UTF-8 without zero bytes, at most %d bytes",
			ErrName, name, maxName)
	}
	if size := disk.Size(); size <= 0 || size%sectorSize != 0 {
		return fmt.Errorf("export %q: %w: expected a positive multiple of 512, found %d bytes",
			name, ErrSize, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.exports[name] != nil {
		return fmt.Errorf("%w: %q", ErrExists, name)
	}
	s.exports[name] = &export{name: name, disk: disk, drained: make(chan struct{})}
	return nil
}

// RemoveExport disconnects the export's clients and returns when none reads the disk any more.
// Errors: ErrNotFound.
func (s *Server) RemoveExport(name string) error {
	s.mu.Lock()
	e := s.exports[name]
	if e == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	delete(s.exports, name)
	e.removed = true
	for c := range s.clients {
		if c.export == e {
			c.disconnect()
		}
	}
	if e.clients == 0 {
		close(e.drained)
	}
	s.mu.Unlock()
	<-e.drained
	return nil
}

// ExportInfo describes one export.
type ExportInfo struct {
	Name    string   `json:"name"`
	Size    int64    `json:"size"`    // bytes
	Clients int      `json:"clients"` // connected now
	Total   uint64   `json:"total"`   // connections so far
	URIs    []string `json:"uris"`    // one for each socket
}

// Exports returns the exports, sorted by name.
func (s *Server) Exports() []ExportInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]ExportInfo, 0, len(s.exports))
	for _, e := range s.exports {
		i := ExportInfo{
			Name: e.name, Size: e.disk.Size(), Clients: e.clients, Total: e.total, URIs: []string{},
		}
		for _, l := range s.listeners {
			i.URIs = append(i.URIs, l.addr.URI(e.name))
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// names returns the names of the exports, sorted.
func (s *Server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.exports))
}

// Listen opens a socket and serves it until Close. The returned address has the chosen port or the
// absolute path.
func (s *Server) Listen(a Address) (Address, error) {
	// Under the lock, so that Close does not miss the socket.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return a, ErrClosed
	}
	nl, a, err := a.listen(s.opts.Group)
	if err != nil {
		return a, fmt.Errorf("listen on %s: %w", a, err)
	}
	s.add(nl, a)
	return a, nil
}

// add serves a socket. The caller holds s.mu.
func (s *Server) add(nl net.Listener, a Address) {
	l := &listener{nl, a}
	s.listeners = append(s.listeners, l)
	s.wg.Go(func() { s.accept(l) })
}

// Addresses returns the addresses of all sockets, in the order of Listen.
func (s *Server) Addresses() []Address {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Address
	for _, l := range s.listeners {
		all = append(all, l.addr)
	}
	return all
}

// Close closes the sockets, disconnects all clients, and returns when none reads a disk any more.
func (s *Server) Close() error {
	s.mu.Lock()
	var errs []error
	if !s.closed {
		s.closed = true
		close(s.done)
		for _, l := range s.listeners {
			errs = append(errs, l.Close())
		}
		for c := range s.clients {
			c.disconnect()
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(errs...)
}
