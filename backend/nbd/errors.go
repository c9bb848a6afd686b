package nbd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Errors of Server's methods.
var (
	// ErrExists: an export of that name exists.
	ErrExists = errors.New("export exists already")
	// ErrNotFound: no export has that name.
	ErrNotFound = errors.New("no such export")
	// ErrName: NBD cannot carry the name.
	ErrName = errors.New("bad export name")
	// ErrSize: the size is not a positive multiple of 512 bytes.
	ErrSize = errors.New("bad export size")
	// ErrAddress: the address is invalid.
	ErrAddress = errors.New("bad address")
	// ErrClosed: the server was closed.
	ErrClosed = errors.New("NBD server is closed")
)

// Errors that end a connection.
var (
	errProtocol = errors.New("client broke the protocol")
	// errReply: go-nbd has sent something that the guard does not know.
	errReply = errors.New("unexpected reply of the NBD library")
)

func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

// Error values of replies ("Values", "Error values"). go-nbd defines the first and the fourth.
const (
	nbdEPERM  = protocol.TRANSMISSION_ERROR_EPERM
	nbdEIO    = uint32(5)
	nbdENOMEM = uint32(12)
	nbdEINVAL = protocol.TRANSMISSION_ERROR_EINVAL
)

// Errors of single requests, which do not end the connection.
var (
	errReadOnly = errors.New("export is read-only")
	errRequest  = errors.New("bad request")
)

// errorValue maps the error of a request to the value in its reply. It is the only such table.
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
