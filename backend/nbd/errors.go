package nbd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Errors of a Server's methods.
var (
	// ErrExists: there is an export of that name already.
	ErrExists = errors.New("export exists already")
	// ErrNotFound: there is no export of that name.
	ErrNotFound = errors.New("no such export")
	// ErrName: a name that NBD cannot carry.
	ErrName = errors.New("bad export name")
	// ErrSize: a disk that does not end with a whole sector.
	ErrSize = errors.New("bad export size")
	// ErrAddress: not an address to listen on.
	ErrAddress = errors.New("bad address")
	// ErrClosed: the server was closed.
	ErrClosed = errors.New("NBD server is closed")
)

// Errors that end a connection.
var (
	errProtocol = errors.New("client broke the protocol")
	// errReply: go-nbd has written something that the guard does not know.
	errReply = errors.New("unexpected reply of the NBD library")
)

func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

// Error values of replies ("Values", "Error values"); go-nbd has the first and
// the fourth.
const (
	nbdEPERM  = protocol.TRANSMISSION_ERROR_EPERM
	nbdEIO    = uint32(5)
	nbdENOMEM = uint32(12)
	nbdEINVAL = protocol.TRANSMISSION_ERROR_EINVAL
)

// Errors of single requests, answered without ending the connection.
var (
	errReadOnly = errors.New("export is read-only")
	errRequest  = errors.New("bad request")
)

// errorValue is the one table from a request's error to the value that the client
// sees.
func errorValue(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReadOnly):
		return nbdEPERM
	case errors.Is(err, errRequest):
		return nbdEINVAL
	case errors.Is(err, syscall.ENOMEM):
		return nbdENOMEM
	}
	return nbdEIO
}
