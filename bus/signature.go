package bus

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/nats-io/nkeys"
)

// ErrUnsigned is a message that the control plane did not sign, or that was
// changed or moved to another subject since.
var ErrUnsigned = errors.New("signature does not hold")

// signer signs what nodes are told. The subject is part of what is signed, so
// that a record cannot be replayed to another node or under another key.
type signer struct {
	key    nkeys.KeyPair
	public string
}

func newSigner(key nkeys.KeyPair) (signer, error) {
	public, err := key.PublicKey()
	if err != nil {
		return signer{}, fmt.Errorf("read signing key: %w", err)
	}
	return signer{key: key, public: public}, nil
}

func signedBytes(subject string, body []byte) []byte {
	b := make([]byte, 0, len(subject)+1+len(body))
	b = append(b, subject...)
	b = append(b, 0)
	return append(b, body...)
}

func (s signer) sign(subject string, body []byte) (string, error) {
	sig, err := s.key.Sign(signedBytes(subject, body))
	if err != nil {
		return "", fmt.Errorf("sign %s: %w", subject, err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}

// verify checks a signature by the holder of the public key.
func verify(public nkeys.KeyPair, subject string, body []byte, signature string) error {
	sig, err := base64.StdEncoding.DecodeString(signature)
	if err != nil || len(sig) == 0 {
		return fmt.Errorf("%s: %w", subject, ErrUnsigned)
	}
	if err := public.Verify(signedBytes(subject, body), sig); err != nil {
		return fmt.Errorf("%s: %w", subject, ErrUnsigned)
	}
	return nil
}
