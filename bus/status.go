package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A refusal travels as NATS services do it, an error header with a code, and
// its body is a metav1.Status, so that clients of either kind understand it.

// failure makes a Status of any error; a nil Status does not come out.
func failure(err error) *metav1.Status {
	var known apierrors.APIStatus
	if errors.As(err, &known) {
		s := known.Status()
		return &s
	}
	code, reason := http.StatusInternalServerError, metav1.StatusReasonInternalError
	switch {
	case errors.Is(err, ErrNotFound):
		code, reason = http.StatusNotFound, metav1.StatusReasonNotFound
	case errors.Is(err, ErrForbidden):
		code, reason = http.StatusForbidden, metav1.StatusReasonForbidden
	case errors.Is(err, ErrTooLarge):
		code, reason = http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge
	}
	return newStatus(code, reason, err.Error())
}

func newStatus(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: int32(code),
	}
}

// encodeStatus returns the body and headers of a refusal.
func encodeStatus(s *metav1.Status) (body []byte, code, description string) {
	if s.Code == 0 {
		s.Code = http.StatusInternalServerError
	}
	if s.Kind == "" {
		s.Kind, s.APIVersion = "Status", "v1"
	}
	if s.Status == "" {
		s.Status = metav1.StatusFailure
	}
	body, err := json.Marshal(s)
	if err != nil { // a Status is plain strings and numbers
		body = []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":500}`)
	}
	description = s.Message
	if description == "" {
		description = string(s.Reason)
	}
	return body, strconv.Itoa(int(s.Code)), headerLine(description)
}

// headerLine makes one line of a text: a header cannot hold more.
func headerLine(s string) string {
	const longest = 512
	b := []byte(s)
	if len(b) > longest {
		b = b[:longest]
	}
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	if len(b) == 0 {
		return "error"
	}
	return strings.ToValidUTF8(string(b), "") // a letter may have been cut through
}

// refusal returns the error that an answer stands for, nil where it is none.
// It is a *StatusError of apimachinery, so that errors.IsNotFound and its
// siblings work.
func refusal(m *nats.Msg) error {
	text := m.Header.Get(micro.ErrorHeader)
	if text == "" && m.Header.Get(micro.ErrorCodeHeader) == "" {
		return nil
	}
	var s metav1.Status
	if err := json.Unmarshal(m.Data, &s); err == nil && s.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: s}
	}
	code, err := strconv.Atoi(m.Header.Get(micro.ErrorCodeHeader))
	if err != nil {
		code = http.StatusInternalServerError
	}
	return &apierrors.StatusError{ErrStatus: *newStatus(code, metav1.StatusReasonUnknown, text)}
}

// tooLargeAnswer is what an answer beyond the payload limit becomes.
func tooLargeAnswer(size int, limit int64) *metav1.Status {
	return newStatus(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
		fmt.Sprintf("the answer of %d bytes is larger than the bus takes: the limit is %d bytes", size, limit))
}

// recovered makes an answer of a panic.
func recovered(p any) *metav1.Status {
	return newStatus(http.StatusInternalServerError, metav1.StatusReasonInternalError, fmt.Sprintf("internal error: %v", p))
}
