package session

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

var idForm = regexp.MustCompile(`^[A-Za-z0-9_-]{16,64}$`)

// CheckID refuses what is no id of a session, with a Status.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return badRequest("session: %.80q is not 16 to 64 of [A-Za-z0-9_-]", id)
	}
	return nil
}

// recvHeader is what a recv says.
type recvHeader struct {
	session string
	pod     string // empty: any
	cursor  int64
	wait    time.Duration
	limit   int
}

// sendHeader is what a send says.
type sendHeader struct {
	session       string
	pod           string
	offset        int64
	wait          time.Duration
	last          bool
	close         bool
	resize        bool
	columns, rows uint16
}

func get(header map[string][]string, key string) string {
	if v := header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func decodeRecv(header map[string][]string) (h recvHeader, err error) {
	h.session, h.pod = get(header, schemas.HeaderSession), get(header, schemas.HeaderPod)
	if err := CheckID(h.session); err != nil {
		return recvHeader{}, err
	}
	if h.cursor, err = count(header, schemas.HeaderCursor, 0); err != nil {
		return recvHeader{}, err
	}
	if h.wait, err = patience(header, 0); err != nil {
		return recvHeader{}, err
	}
	limit, err := count(header, schemas.HeaderMax, schemas.MaxSessionPiece)
	if err != nil {
		return recvHeader{}, err
	}
	if limit == 0 {
		return recvHeader{}, badRequest("header %s: must be at least 1", schemas.HeaderMax)
	}
	h.limit = int(min(limit, schemas.MaxSessionPiece))
	return h, nil
}

func decodeSend(header map[string][]string, body int) (h sendHeader, err error) {
	h.session, h.pod = get(header, schemas.HeaderSession), get(header, schemas.HeaderPod)
	if err := CheckID(h.session); err != nil {
		return sendHeader{}, err
	}
	if body > schemas.MaxSessionPiece {
		return sendHeader{}, status(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
			"a send may carry %d bytes, this one has %d", schemas.MaxSessionPiece, body)
	}
	if h.offset, err = count(header, schemas.HeaderOffset, 0); err != nil {
		return sendHeader{}, err
	}
	if body > 0 && get(header, schemas.HeaderOffset) == "" {
		return sendHeader{}, badRequest("header %s: must say how many bytes were sent before", schemas.HeaderOffset)
	}
	if h.wait, err = patience(header, sendWait); err != nil {
		return sendHeader{}, err
	}
	if h.last, err = flag(header, schemas.HeaderLast); err != nil {
		return sendHeader{}, err
	}
	if h.close, err = flag(header, schemas.HeaderClose); err != nil {
		return sendHeader{}, err
	}
	if size := get(header, schemas.HeaderResize); size != "" {
		h.resize = true
		if h.columns, h.rows, err = parseSize(size); err != nil {
			return sendHeader{}, err
		}
	}
	return h, nil
}

// mostBytes is what one session can carry. It leaves room for sums.
const mostBytes = 1 << 62

func count(header map[string][]string, key string, absent int64) (int64, error) {
	text := get(header, key)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > mostBytes {
		return 0, badRequest("header %s: %.40q is not a number of bytes", key, text)
	}
	return n, nil
}

// patience is how long a request waits, in whole seconds up to maxWait.
func patience(header map[string][]string, absent time.Duration) (time.Duration, error) {
	text := get(header, schemas.HeaderWait)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, badRequest("header %s: %.40q is not a number of seconds", schemas.HeaderWait, text)
	}
	return min(time.Duration(n)*time.Second, maxWait), nil
}

func flag(header map[string][]string, key string) (bool, error) {
	switch text := get(header, key); text {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, badRequest("header %s: %.40q is neither true nor false", key, text)
	}
}

// parseSize reads "80x24", columns first.
func parseSize(text string) (columns, rows uint16, err error) {
	c, r, ok := strings.Cut(text, "x")
	cn, err1 := strconv.ParseUint(c, 10, 16)
	rn, err2 := strconv.ParseUint(r, 10, 16)
	if !ok || err1 != nil || err2 != nil || cn == 0 || rn == 0 {
		return 0, 0, badRequest("header %s: %.40q is not <columns>x<rows>", schemas.HeaderResize, text)
	}
	return uint16(cn), uint16(rn), nil
}
