// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

/// @title Merkle trees over SHA-256, as `tutti.core.merkle` builds them: leaves hashed twice, pairs sorted.
library Sha256Merkle {
    function holds(bytes32 root, bytes memory record, bytes32[] calldata proof) internal view returns (bool) {
        return MerkleProof.processProofCalldata(proof, sha256(bytes.concat(sha256(record))), _pair) == root;
    }

    function _pair(bytes32 a, bytes32 b) private pure returns (bytes32) {
        return a < b ? sha256(bytes.concat(a, b)) : sha256(bytes.concat(b, a));
    }
}
