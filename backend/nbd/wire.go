package nbd

import (
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Limits of what a client may send.
const (
	// maxName is NBD's limit of a name in bytes ("Values", "String values").
	maxName = 4096
	// maxOption bounds an option's data in bytes: a name of full length with 4,096
	// information requests, more than there are kinds.
	maxOption = 4 + maxName + 2 + 2*4096
	// maxOptions bounds the options of a handshake. libnbd and QEMU send up to
	// six.
	maxOptions = 64
	// maxRequest bounds one request in bytes; every client may rely on as much
	// ("Block size constraints").
	maxRequest = 32 << 20
	// chunkSize is the largest piece in bytes in which a READ is handed to go-nbd,
	// which keeps one buffer of the last piece's size.
	chunkSize = 256 << 10
	// maxReplies bounds what go-nbd answers to one option, in bytes.
	maxReplies = 4*20 + 2*(2+maxName) + 64
)

// sectorSize in bytes divides every export's size: over another size QEMU's client
// waits for the rest of the last sector, for ever, when replies are simple ones.
const sectorSize = 512

// Defaults of Options.
const (
	defaultConnections   = 64
	defaultPerExport     = 16
	defaultHandshakeTime = 10 * time.Second
	defaultStallTime     = time.Minute
	defaultIdleTime      = time.Hour
	defaultCloseTime     = time.Second
)

// Options ("Option types") that go-nbd has no names for.
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

// flagReadOnly is the transmission flag that go-nbd never sets ("Transmission
// flags").
const flagReadOnly = uint16(1 << 1)

// flagNoZeroes is the handshake flag, the server's and the client's, by which the reply to
// EXPORT_NAME ends without zeros ("Flag fields").
const flagNoZeroes = uint32(1 << 1)

const transmissionFlags = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | flagReadOnly | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN

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
