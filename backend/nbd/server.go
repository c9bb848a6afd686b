package nbd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Disk is what an export shows; *cow.Disk is one. ReadAt is called by several
// goroutines at once.
type Disk interface {
	io.ReaderAt
	Size() int64    // bytes, a multiple of 512; fixed
	BlockSize() int // bytes; what clients are told to prefer, if more than 4096
}

// Options of a Server; the zero value is usable.
type Options struct {
	Log           *slog.Logger  // default: slog.Default
	Group         string        // group that may connect to UNIX sockets too; default: none
	Connections   int           // most connections at a time; default: 64
	PerExport     int           // most connections to one export; default: 16
	HandshakeTime time.Duration // from accept to the end of the handshake; default: 10 s
	StallTime     time.Duration // for one message, in either direction; default: 1 min
	IdleTime      time.Duration // between two requests; default: 1 h
	CloseTime     time.Duration // from a client's goodbye to its end; default: 1 s
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Connections <= 0 {
		o.Connections = defaultConnections
	}
	if o.PerExport <= 0 {
		o.PerExport = defaultPerExport
	}
	if o.HandshakeTime <= 0 {
		o.HandshakeTime = defaultHandshakeTime
	}
	if o.StallTime <= 0 {
		o.StallTime = defaultStallTime
	}
	if o.IdleTime <= 0 {
		o.IdleTime = defaultIdleTime
	}
	if o.CloseTime <= 0 {
		o.CloseTime = defaultCloseTime
	}
	return o
}

// Server offers exports by name on any number of sockets. Its methods may be
// called from any goroutine.
type Server struct {
	opts Options
	log  limitedLog
	wg   sync.WaitGroup // accept loops and clients
	done chan struct{}  // closed by Close

	mu        sync.Mutex
	exports   map[string]*export
	listeners []*listener
	clients   map[*client]struct{}
	accepted  uint64 // clients so far
	closed    bool
}

// export is one name. Its fields are under Server.mu, but for the fixed ones.
type export struct {
	name    string // fixed
	disk    Disk   // fixed; the caller's
	clients int    // pins
	total   uint64 // clients so far
	drained chan struct{}
	removed bool // gone is closed when the last client has left
}

type listener struct {
	net.Listener
	addr Address
}

// New makes a server without exports and sockets.
func New(o Options) *Server {
	o = o.withDefaults()
	return &Server{
		opts: o, log: limitedLog{log: o.Log}, done: make(chan struct{}),
		exports: map[string]*export{}, clients: map[*client]struct{}{},
	}
}

// AddExport offers disk for reading. It stays the caller's, who may close it after
// RemoveExport or Close. ErrExists, ErrName, ErrSize, ErrClosed.
func (s *Server) AddExport(name string, disk Disk) error {
	if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w %q: expected UTF-8 without zero bytes, at most %d bytes", ErrName, name, maxName)
	}
	if size := disk.Size(); size <= 0 || size%sectorSize != 0 {
		return fmt.Errorf("export %q: %w: expected a positive multiple of 512, found %d bytes", name, ErrSize, size)
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

// RemoveExport disconnects the export's clients and returns when none reads the
// disk any more. ErrNotFound.
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

// ExportInfo is one export.
type ExportInfo struct {
	Name    string   `json:"name"`
	Size    int64    `json:"size"`    // bytes
	Clients int      `json:"clients"` // connected now
	Total   uint64   `json:"total"`   // connections so far
	URIs    []string `json:"uris"`    // one a socket
}

// Exports lists the exports by name.
func (s *Server) Exports() []ExportInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]ExportInfo, 0, len(s.exports))
	for _, e := range s.exports {
		i := ExportInfo{Name: e.name, Size: e.disk.Size(), Clients: e.clients, Total: e.total, URIs: []string{}}
		for _, l := range s.listeners {
			i.URIs = append(i.URIs, l.addr.URI(e.name))
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// names lists the exports by name, for a client that asks.
func (s *Server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.exports))
	for name := range s.exports {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Listen opens one more socket and serves it until Close. The address returned has
// the port that was chosen, or the absolute path.
func (s *Server) Listen(a Address) (Address, error) {
	// Under the lock: a socket made while Close runs would stay.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return a, ErrClosed
	}
	nl, a, err := a.listen(s.opts.Group)
	if err != nil {
		return a, fmt.Errorf("listen on %s: %w", a, err)
	}
	l := &listener{nl, a}
	s.listeners = append(s.listeners, l)
	s.wg.Go(func() { s.accept(l) })
	return a, nil
}

// Addresses are those listened on, in the order of Listen.
func (s *Server) Addresses() []Address {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Address
	for _, l := range s.listeners {
		all = append(all, l.addr)
	}
	return all
}

// Close closes the sockets, disconnects every client, and returns when none reads
// any disk any more.
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
