package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol is wrapped by the errors of messages that are malformed or use features that were not
// offered. If the memory table or the Backend refused a message, the error is theirs instead.
var ErrProtocol = errors.New("vhost-user protocol error")

// Request is a message's type (VHOST_USER_*, "Front-end message types").
type Request uint32

// Messages with names, supported or not (doc.go lists the supported ones).
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SetBackendReqFD     Request = 21
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
)

// String returns the message's name in the specification without its prefix, such as
// "SET_VRING_NUM", or "message 99".
func (r Request) String() string {
	names := [...]string{
		GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES",
		SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
		SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFD: "SET_LOG_FD",
		SetVringNum: "SET_VRING_NUM", SetVringAddr: "SET_VRING_ADDR",
		SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
		SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL",
		SetVringErr:         "SET_VRING_ERR",
		GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
		GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE",
		SetBackendReqFD: "SET_BACKEND_REQ_FD",
		GetConfig:       "GET_CONFIG", SetConfig: "SET_CONFIG",
		GetInflightFD: "GET_INFLIGHT_FD", SetInflightFD: "SET_INFLIGHT_FD",
		ResetDevice: "RESET_DEVICE", GetMaxMemSlots: "GET_MAX_MEM_SLOTS",
		AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG",
		SetStatus: "SET_STATUS", GetStatus: "GET_STATUS",
	}
	if int64(r) < int64(len(names)) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("message %d", uint32(r))
}

// Header flags ("Header"): two bits of version, whether the message is a reply, and whether its
// sender wants one.
const (
	FlagVersionMask uint32 = 0x3
	FlagVersion     uint32 = 0x1
	FlagReply       uint32 = 1 << 2
	FlagNeedReply   uint32 = 1 << 3
)

// HeaderSize is the size of a message's header in bytes.
const HeaderSize = 12

// Header precedes every message's payload, in the machine's byte order, which both ends share; this
// package is built for little-endian machines.
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32 // bytes of payload
}

// Append appends the header's 12 bytes to b.
func (h Header) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Request))
	b = binary.LittleEndian.AppendUint32(b, h.Flags)
	return binary.LittleEndian.AppendUint32(b, h.Size)
}

// DecodeHeader reads a header from the first 12 bytes of b.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("header of %d bytes, expected %d: %w", len(b), HeaderSize,
			ErrProtocol)
	}
	return Header{
		Request: Request(binary.LittleEndian.Uint32(b)),
		Flags:   binary.LittleEndian.Uint32(b[4:]),
		Size:    binary.LittleEndian.Uint32(b[8:]),
	}, nil
}

// Message is a header with its payload and the descriptors that came with it.
type Message struct {
	Header
	Payload []byte
	// FDs belong to the holder of the message, until TakeFD or CloseFDs.
	FDs []int
}

// TakeFD removes the first descriptor from the message and returns it; the caller must close it. -1
// if there is none.
func (m *Message) TakeFD() int {
	if len(m.FDs) == 0 {
		return -1
	}
	fd := m.FDs[0]
	m.FDs = m.FDs[1:]
	return fd
}

// CloseFDs closes the remaining descriptors.
func (m *Message) CloseFDs() {
	for _, fd := range m.FDs {
		closeFD(fd)
	}
	m.FDs = nil
}
