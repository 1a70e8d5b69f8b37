/* The two functions that training needs, for a target that has no C library. */
float expf(float x);
float logf(float x);
