package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Limits of what a client may send.
const (
	// maxName is NBD's limit for a name, in bytes ("Values", "String values").
	maxName = 4096
	// maxOption bounds the data of an option, in bytes: a name of maximum length with 4,096
	// information requests, more than there are types.
	maxOption = 4 + maxName + 2 + 2*4096
	// maxOptions bounds the options of a handshake. libnbd and QEMU send at most six.
	maxOptions = 64
	// maxRequest bounds one request, in bytes; it is the minimum that a client may rely on ("Block
	// size constraints").
	maxRequest = 32 << 20
	// chunkSize bounds the pieces in which a READ is forwarded to go-nbd, in bytes. go-nbd keeps
	// one buffer of the last piece's size.
	chunkSize = 256 << 10
	// maxReplies bounds go-nbd's replies to one option, in bytes.
	maxReplies = 4*20 + 2*(2+maxName) + 64
)

// sectorSize divides the size of every export, in bytes. Otherwise, with simple replies, QEMU's
// client waits for the rest of the last sector for ever.
const sectorSize = 512

// Options ("Option types"). go-nbd lacks some names.
const (
	optExportName = uint32(1)
	optAbort      = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList       = protocol.NEGOTIATION_ID_OPTION_LIST
	optInfo       = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo         = protocol.NEGOTIATION_ID_OPTION_GO
)

// Replies to options ("Option reply types").
const (
	repAck        = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer     = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo       = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repErrPolicy  = uint32(1<<31 | 2)
	repErrInvalid = uint32(1<<31 | 3)
	repErrUnknown = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
)

// Commands ("Request types") and their flags.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdTrim        = uint16(4)
	cmdWriteZeroes = uint16(6)
)

// flagReadOnly is the transmission flag NBD_FLAG_READ_ONLY, which go-nbd never sets ("Transmission
// flags").
const flagReadOnly = uint16(1 << 1)

// flagNoZeroes is the handshake flag of server and client by which the reply to EXPORT_NAME ends
// without zeros ("Flag fields").
const flagNoZeroes = uint32(1 << 1)

const transmissionFlags = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | flagReadOnly |
	protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN

// Lengths of fixed parts, in bytes.
const (
	greetingLen     = 18 // NBDMAGIC, IHAVEOPT, handshake flags
	clientFlagsLen  = 4
	optionHeaderLen = 16 // IHAVEOPT, option, length
	optionReplyLen  = 20 // magic, option, type, length
	infoExportLen   = 12 // type, size, flags
	requestLen      = 28 // magic, flags, type, cookie, offset, length
	replyLen        = 16 // magic, error, cookie
	exportNameLen   = 10 // reply to EXPORT_NAME: size, flags; then zeros
	exportNameZeros = 124
)
