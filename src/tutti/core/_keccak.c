/* Keccak-256 as Ethereum uses it: the same as keccak.py in this directory, which says what it is; tested equal. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

enum { RATE = 136, ROUNDS = 24 }; /* bytes that go in between two permutations */

static const uint64_t CONSTANTS[ROUNDS] = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808a, 0x8000000080008000, 0x000000000000808b,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008a, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000a, 0x000000008000808b, 0x800000000000008b, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800a, 0x800000008000000a,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
};

static inline uint64_t turned(uint64_t lane, unsigned by) { return by ? lane << by | lane >> (64 - by) : lane; }

/* The lane of column x and row y is state[x + 5 * y]. */
static void permute(uint64_t state[25]) {
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t parity[5], moved[25];
        for (int x = 0; x < 5; x++)
            parity[x] = state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20];
        for (int i = 0; i < 25; i++)
            state[i] ^= parity[(i + 4) % 5] ^ turned(parity[(i + 1) % 5], 1);
        moved[0] = state[0];
        for (int step = 0, x = 1, y = 0; step < 24; step++) {
            int next = (2 * x + 3 * y) % 5;
            moved[y + 5 * next] = turned(state[x + 5 * y], (unsigned)((step + 1) * (step + 2) / 2 % 64));
            x = y;
            y = next;
        }
        for (int i = 0; i < 25; i++) {
            int row = i - i % 5;
            state[i] = moved[i] ^ (~moved[row + (i + 1) % 5] & moved[row + (i + 2) % 5]);
        }
        state[0] ^= CONSTANTS[round];
    }
}

static void absorb(uint64_t state[25], const unsigned char *block) {
    for (int i = 0; i < RATE; i++)
        state[i / 8] ^= (uint64_t)block[i] << 8 * (i % 8);
    permute(state);
}

PyDoc_STRVAR(keccak_doc, "keccak256(data) -> bytes");

static PyObject *keccak(PyObject *module, PyObject *object) {
    uint64_t state[25] = {0};
    unsigned char last[RATE] = {0}, digest[32];
    Py_buffer data;
    (void)module;
    if (PyObject_GetBuffer(object, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    const unsigned char *at = data.buf;
    Py_ssize_t left = data.len;
    for (; left >= RATE; at += RATE, left -= RATE)
        absorb(state, at);
    memcpy(last, at, (size_t)left);
    PyBuffer_Release(&data);
    last[left] ^= 0x01;
    last[RATE - 1] ^= 0x80;
    absorb(state, last);
    for (int i = 0; i < 32; i++)
        digest[i] = (unsigned char)(state[i / 8] >> 8 * (i % 8));
    return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

static PyMethodDef methods[] = {
    {"keccak256", keccak, METH_O, keccak_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tutti.core._keccak",
    .m_doc = "The compiled twin of tutti.core.keccak.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__keccak(void) { return PyModuleDef_Init(&definition); }
